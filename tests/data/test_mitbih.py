"""MIT-BIH: parsing and preparation by hand-worked records, then the real files where they are."""

import os
from pathlib import Path

import numpy as np
import pytest
import pywt
import wfdb
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import resample

from data import mitbih
from data.dataset import Dataset


def write_record(
    folder: Path,
    record: int,
    beats: list[tuple[int, str]],
    signal: np.ndarray | None = None,
    channel: str = "MLII",
    rate_hz: int = 360,
) -> None:
    """Write a WFDB record: first channel ``signal`` in steps of 1/200 mV, by default 0 to 1999."""
    ramp = np.arange(2000) if signal is None else signal
    wfdb.wrsamp(
        str(record),
        fs=rate_hz,
        units=["mV", "mV"],
        sig_name=[channel, "V1"],
        d_signal=np.stack([ramp, -ramp], axis=1).astype(np.int64),
        fmt=["16", "16"],
        adc_gain=[200.0, 200.0],
        baseline=[0, 0],
        write_dir=str(folder),
    )
    positions, symbols = zip(*beats, strict=True)
    wfdb.wrann(str(record), "atr", np.array(positions), symbol=list(symbols), write_dir=str(folder))


def read_peaks(folder: Path, beats: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Write a ramp with these annotations, read it, and return (peak, class) of each kept beat."""
    write_record(folder, 100, beats)
    windows, labels = mitbih.read_beats(folder, 100)
    # A ramp's window holds the sample numbers themselves, so its middle value tells the peak.
    peaks = np.rint(windows[:, 100] * 200).astype(int)
    return [(int(peak), mitbih.CLASSES[label]) for peak, label in zip(peaks, labels, strict=True)]


def test_window_is_100_samples_each_side_of_the_peak_in_millivolts(tmp_path: Path) -> None:
    write_record(tmp_path, 100, [(500, "N")])
    windows, labels = mitbih.read_beats(tmp_path, 100)
    assert windows.shape == (1, 201)
    np.testing.assert_allclose(windows[0], np.arange(400, 601) / 200, atol=1e-12)
    assert labels.tolist() == [0]


def test_classes_are_numbered_in_the_papers_order(tmp_path: Path) -> None:
    beats = [(200, "N"), (400, "L"), (600, "R"), (800, "A"), (1000, "V"), (1200, "/"), (1400, "a")]
    write_record(tmp_path, 100, beats)
    _, labels = mitbih.read_beats(tmp_path, 100)
    assert labels.tolist() == [0, 1, 2, 3, 4]  # the paced and the aberrated beat are no class


@pytest.mark.parametrize(
    ("beats", "kept"),
    [
        # exactly 100 samples apart: each lies on the last sample of the other's window
        ([(500, "N"), (600, "V"), (900, "N")], [(900, "N")]),
        ([(500, "N"), (601, "V"), (900, "N")], [(500, "N"), (601, "V"), (900, "N")]),
        # a beat of a class that is not used is a second peak all the same
        ([(500, "N"), (560, "F"), (900, "L")], [(900, "L")]),
        # a rhythm change, noise, and a blocked P wave are no peaks
        ([(480, "+"), (500, "A"), (520, "~"), (560, "x")], [(500, "A")]),
        # the middle one of three has a neighbour on each side, the outer ones on one
        ([(500, "N"), (590, "N"), (680, "N"), (900, "R")], [(900, "R")]),
        # windows that reach beyond the 2,000 samples
        ([(99, "N"), (300, "N"), (1900, "N")], [(300, "N")]),
        ([(100, "N"), (300, "N"), (1899, "N")], [(100, "N"), (300, "N"), (1899, "N")]),
        # no beat at all
        ([(500, "+")], []),
    ],
)
def test_windows_with_a_second_peak_or_beyond_the_signal_are_discarded(
    tmp_path: Path, beats: list[tuple[int, str]], kept: list[tuple[int, str]]
) -> None:
    assert read_peaks(tmp_path, beats) == kept


def test_a_window_with_an_invalid_sample_is_discarded() -> None:
    signal = np.zeros(1000)
    signal[601] = np.nan
    windows, labels = mitbih.cut_windows(signal, np.array([300, 500, 701]), np.array(list("NLR")))
    assert windows.shape == (1 + 1, 201)
    assert labels.tolist() == [0, 1]  # 500's window ends at 600, 701's begins at 601


def test_scale_uses_each_beats_own_minimum_and_maximum() -> None:
    scaled = mitbih.scale(np.array([[2.0, 4.0, 3.0], [-1.0, 7.0, 1.0], [5.0, 5.0, 5.0]]))
    np.testing.assert_array_equal(scaled, [[0, 1, 0.5], [0, 1, 0.25], [0, 0, 0]])


def test_resampling_a_whole_number_of_waves_gives_the_same_waves() -> None:
    wave = np.cos(2 * np.pi * 3 * np.arange(201) / 201)
    low, high = wave.min(), wave.max()
    expected = (np.cos(2 * np.pi * 3 * np.arange(128) / 128) - low) / (high - low)
    beats = mitbih.prepare(wave[None], denoise=False)
    assert beats.shape == (1, 128)
    assert beats.dtype == np.float32
    np.testing.assert_allclose(beats[0], expected, atol=1e-6)


def test_three_levels_fit_128_samples_with_the_chosen_wavelet_and_not_with_the_next() -> None:
    assert pywt.dwt_max_level(128, pywt.Wavelet(mitbih.WAVELET)) == mitbih.LEVELS
    assert pywt.dwt_max_level(128, pywt.Wavelet("bior2.8")) < mitbih.LEVELS


def test_denoising_leaves_a_beat_alone_whose_finest_level_is_mostly_zero() -> None:
    impulse = np.zeros((1, 128))
    impulse[0, 64] = 1.0  # touches few of the finest coefficients: their median, so λ, is 0
    np.testing.assert_allclose(mitbih.wavelet_denoise(impulse), impulse, atol=1e-12)


def test_denoising_follows_the_formula_beat_by_beat() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 128))
    rows[:10] *= 0.01  # each beat has a threshold of its own
    denoised = mitbih.wavelet_denoise(rows)
    for row, got in zip(rows, denoised, strict=True):
        coarse, detail3, detail2, detail1 = pywt.wavedec(row, "bior2.6", level=3)
        threshold = np.median(np.abs(detail1)) / 0.6745 * np.sqrt(2 * np.log(128))
        shrunk = [pywt.threshold(d, threshold, "soft") for d in (detail3, detail2, detail1)]
        np.testing.assert_allclose(got, pywt.waverec([coarse, *shrunk], "bior2.6"), atol=1e-12)


def test_denoising_brings_a_noisy_wave_nearer_to_the_clean_one() -> None:
    clean = np.sin(2 * np.pi * np.arange(128) / 64)
    noisy = clean + np.random.default_rng(0).normal(scale=0.1, size=(50, 128))
    before, after = (np.abs(x - clean).mean() for x in (noisy, mitbih.wavelet_denoise(noisy)))
    assert after < 0.6 * before


def test_preparing_all_beats_at_once_equals_one_by_one() -> None:
    windows = np.random.default_rng(0).normal(size=(37, 201)).cumsum(axis=1)
    single = np.concatenate([mitbih.prepare(window[None]) for window in windows])
    np.testing.assert_allclose(mitbih.prepare(windows), single, rtol=0, atol=1e-6)
    beats = resample(mitbih.scale(windows), 128, axis=1)  # before rounding to float32
    each = np.concatenate([mitbih.wavelet_denoise(beat[None]) for beat in beats])
    np.testing.assert_allclose(mitbih.wavelet_denoise(beats), each, rtol=0, atol=1e-12)


@given(
    surplus=st.lists(st.integers(0, 9), min_size=5, max_size=5),
    counts=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_by_beat_draws_the_counts_and_never_a_beat_twice(
    surplus: list[int], counts: list[int], seed: int
) -> None:
    sizes = [2 * count + more for count, more in zip(counts, surplus, strict=True)]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), sizes))
    train, test = mitbih.split_by_beat(labels, counts, seed)
    assert np.bincount(labels[train]).tolist() == counts
    assert np.bincount(labels[test]).tolist() == counts
    assert not set(train) & set(test)
    for rows, again in zip((train, test), mitbih.split_by_beat(labels, counts, seed), strict=True):
        assert (np.diff(rows) > 0).all()
        np.testing.assert_array_equal(rows, again)


def test_43_records_remain_and_the_sides_share_none() -> None:
    assert len(mitbih.RECORDS) == 43
    assert len(set(mitbih.RECORDS)) == 43
    assert not {102, 104, 107, 114, 217} & set(mitbih.RECORDS)
    assert len(mitbih.PATIENTS) == 42
    indices = mitbih.patient_index(np.array([100, 101, 201, 202, 203, 234]))
    assert indices.tolist() == [0, 1, 20, 20, 21, 41]


@pytest.fixture(scope="module")
def small_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of 43 records, six beats each: N, L, R, A, V, V."""
    root = tmp_path_factory.mktemp("root")
    (root / "mitdb").mkdir()
    rng = np.random.default_rng(0)
    for record in mitbih.RECORDS:
        beats = [(200 + 250 * i, symbol) for i, symbol in enumerate("NLRAVV")]
        write_record(root / "mitdb", record, beats, signal=rng.integers(-500, 500, 2000))
    return root


def test_split_by_patient_keeps_each_patient_on_one_side(small_database: Path) -> None:
    dataset = mitbih.load(small_database, split="patient")
    assert dataset.train_x.shape == (22 * 6, 1, 128)
    assert dataset.test_x.shape == (21 * 6, 1, 128)
    assert mitbih.class_counts(dataset.train_y) == {"N": 22, "L": 22, "R": 22, "A": 22, "V": 44}
    assert dataset.train_group is not None
    owners = {mitbih.PATIENTS[index] for index in dataset.train_group.tolist()}
    assert owners == set(mitbih.TRAIN_RECORDS) - {202}
    assert int((dataset.train_group == mitbih.PATIENTS.index(201)).sum()) == 2 * 6


def test_split_by_patient_keeps_to_the_limits() -> None:
    labels = np.tile(np.arange(5), 43)
    records = np.repeat(mitbih.RECORDS, 5)
    train, test = mitbih.split_by_patient(labels, records, (3, 4, 5, 6, 99), seed=1)
    assert np.bincount(labels[train]).tolist() == [3, 4, 5, 6, 22]
    assert np.bincount(labels[test]).tolist() == [3, 4, 5, 6, 21]
    assert set(records[train]) <= set(mitbih.TRAIN_RECORDS)


def test_split_by_patient_refuses_a_class_that_one_side_lacks() -> None:
    records = np.repeat(mitbih.RECORDS, 5)
    labels = np.tile(np.arange(5), 43)
    labels[np.isin(records, mitbih.TEST_RECORDS) & (labels == 3)] = 0
    with pytest.raises(ValueError, match="no test record has a beat of class A"):
        mitbih.split_by_patient(labels, records, None, seed=0)


def test_split_by_beat_says_which_class_has_too_few(small_database: Path) -> None:
    with pytest.raises(ValueError, match="class N has 43 beats in the 43 records, needs 6000"):
        mitbih.load(small_database, split="beat")


@pytest.mark.parametrize("folder", mitbih.FOLDERS)
def test_each_folder_is_found(tmp_path: Path, small_database: Path, folder: str) -> None:
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    root = small_database / "mitdb" if folder == "." else tmp_path
    if folder != ".":
        (tmp_path / folder).symlink_to(small_database / "mitdb")
    assert mitbih.find_folder(root) == root / folder


def test_a_missing_folder_is_one_line_that_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mitbih.load(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), "100.hea", str(tmp_path / "mitdb/1.0.0"), "dl_database('mitdb'"):
        assert part in message


def test_an_incomplete_folder_is_told_from_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "mitdb").mkdir()
    write_record(tmp_path / "mitdb", 100, [(500, "N")])
    with pytest.raises(FileNotFoundError, match=r"mitdb lacks 126 of the 129 files, 101\.hea"):
        mitbih.load(tmp_path)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split=record: takes beat or patient"):
        mitbih.load(tmp_path, split="record")


@pytest.mark.parametrize("suffix", mitbih.SUFFIXES)
def test_a_damaged_record_is_one_line_with_its_path(tmp_path: Path, suffix: str) -> None:
    write_record(tmp_path, 100, [(500, "N")])
    path = tmp_path / f"100{suffix}"
    path.write_bytes(path.read_bytes()[:3])
    with pytest.raises(ValueError, match=r"100: damaged record") as caught:
        mitbih.read_beats(tmp_path, 100)
    assert "\n" not in str(caught.value)


def test_annotations_cut_short_at_a_whole_word_are_noticed(tmp_path: Path) -> None:
    write_record(tmp_path, 100, [(300, "N"), (600, "N"), (900, "N")])
    path = tmp_path / "100.atr"
    path.write_bytes(path.read_bytes()[:-4])  # the end mark and the last beat, two bytes each
    with pytest.raises(ValueError, match=r"100: damaged record: its annotations end before"):
        mitbih.read_beats(tmp_path, 100)


@pytest.mark.parametrize(("channel", "rate_hz"), [("V5", 360), ("MLII", 250)])
def test_another_channel_or_rate_is_refused(tmp_path: Path, channel: str, rate_hz: int) -> None:
    write_record(tmp_path, 100, [(500, "N")], channel=channel, rate_hz=rate_hz)
    with pytest.raises(ValueError, match=f"first channel is {channel} at {rate_hz} Hz, not MLII"):
        mitbih.read_beats(tmp_path, 100)


@pytest.fixture(scope="module")
def real_root() -> Path:
    """The folder that holds the real database."""
    project = Path(__file__).resolve().parents[2]
    roots = [project.parent / "shared" / "data", Path.home() / ".cache" / "cutbit"]
    if os.environ.get("CUTBIT_DATA"):
        roots = [Path(os.environ["CUTBIT_DATA"])]
    for root in roots:
        try:
            mitbih.find_folder(root)
        except FileNotFoundError:
            continue
        return root
    pytest.skip(f"no MIT-BIH database in {', '.join(map(str, roots))}; set CUTBIT_DATA")


@pytest.fixture(scope="module")
def by_beat(real_root: Path) -> Dataset:
    return mitbih.load(real_root)


def test_real_split_by_beat_has_the_papers_counts(by_beat: Dataset) -> None:
    counts = {"N": 3000, "L": 3000, "R": 3000, "A": 1245, "V": 3000}
    assert by_beat.train_x.shape == by_beat.test_x.shape == (13245, 1, 128)
    assert mitbih.class_counts(by_beat.train_y) == counts
    assert mitbih.class_counts(by_beat.test_y) == counts
    assert by_beat.train_group is not None
    assert by_beat.train_group.unique().tolist() == list(range(42))
    assert by_beat.train_x.isfinite().all()
    assert -0.2 < float(by_beat.train_x.min()) < float(by_beat.train_x.max()) < 1.2


def test_real_split_depends_on_the_seed_alone(real_root: Path, by_beat: Dataset) -> None:
    again, other = mitbih.load(real_root, seed=0), mitbih.load(real_root, seed=1)
    assert again.train_x.equal(by_beat.train_x)
    assert again.test_x.equal(by_beat.test_x)
    assert not other.train_x.equal(by_beat.train_x)


def test_real_beats_after_discarding(real_root: Path) -> None:
    folder = mitbih.find_folder(real_root)
    labels = np.concatenate([mitbih.read_beats(folder, record)[1] for record in mitbih.RECORDS])
    expected = {"N": 72702, "L": 8073, "R": 7257, "A": 2536, "V": 6838}
    assert mitbih.class_counts(labels) == expected


def test_real_split_by_patient_has_every_class_on_both_sides(real_root: Path) -> None:
    dataset = mitbih.load_by_user(real_root)
    train = {"N": 3000, "L": 3000, "R": 3000, "A": 836, "V": 3000}
    assert mitbih.class_counts(dataset.train_y) == train
    assert mitbih.class_counts(dataset.test_y) == train | {"A": 1245}
    assert dataset.train_group is not None
    assert len(dataset.train_group.unique()) == 21
