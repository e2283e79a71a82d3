"""MIT-BIH Arrhythmia Database: single heart beats of 128 samples, five classes.

Moody and Mark 2001, doi 10.1109/51.932724; PhysioNet, https://physionet.org/content/mitdb/1.0.0/.
Prepared as Abuadbba et al. 2020, arXiv 2003.12365, do: records 102, 104, 107, 114 and 217 are
dropped, 43 remain; of their first channel (MLII, 360 Hz) 100 samples each side of every annotated
R peak are cut out, 201 in all; a window that holds a second peak is discarded; each beat is scaled
to [0, 1] by its own minimum and maximum, resampled to 128 samples by Fourier's method, denoised.

Denoising, per beat of N = 128 samples: three levels of a biorthogonal wavelet; every detail
coefficient d becomes sign(d)·max(|d| − λ, 0), λ = σ√(2 ln N), σ = median|d|/0.6745 over the finest
level (Donoho and Johnstone 1994, doi 10.1093/biomet/81.3.425).

Classes, by their annotation: 0 N normal, 1 L left and 2 R right bundle branch block, 3 A atrial and
4 V ventricular premature. Other beats are not used, but count as second peaks.

Two splits:

- ``beat``: the paper's. A seed draws 3000/3000/3000/1245/3000 beats of N/L/R/A/V for training and
  as many others for the test. After discarding, the files hold 72702/8073/7257/2536/6838. A patient
  is on both sides, and windows of two beats at most 200 samples apart share samples, so accuracy is
  far above what new patients would get.
- ``patient``: no patient is on both sides. Training and test records are DS1 and DS2 of de Chazal
  et al. 2004, doi 10.1109/TBME.2004.827359, less the dropped ones, with 202 moved from DS2 to DS1:
  it is the same person as 201. Every class occurs on both sides, but L and R each come from a few
  patients whose beats differ in shape (207's L beats are upside down), so accuracy is far lower.

Deviations: the paper names the family of the wavelet only; bior2.6 is the longest of the bior2
filters of which three levels fit 128 samples.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.dataset import Dataset

CLASSES = "NLRAV"
# fmt: off
TRAIN_RECORDS = (  # DS1 without 114, with 202
    101, 106, 108, 109, 112, 115, 116, 118, 119, 122, 124,
    201, 202, 203, 205, 207, 208, 209, 215, 220, 223, 230,
)
TEST_RECORDS = (  # DS2 without 202
    100, 103, 105, 111, 113, 117, 121, 123, 200, 210, 212,
    213, 214, 219, 221, 222, 228, 231, 232, 233, 234,
)
# fmt: on
RECORDS = tuple(sorted(TRAIN_RECORDS + TEST_RECORDS))
PATIENTS = tuple(record for record in RECORDS if record != 202)  # 201 and 202: one person
CLASS_COUNTS = (3000, 3000, 3000, 1245, 3000)  # of each side

# PhysioNet's beat annotations, https://archive.physionet.org/physiobank/annotations.shtml. Flutter
# waves (!) and blocked P waves (x) are none.
BEAT_SYMBOLS = list("NLRBAaJSVrFejnE/fQ?")
RATE_HZ = 360
CHANNEL = "MLII"
HALF_WINDOW = 100  # samples each side of the R peak
BEAT_LENGTH = 128
WAVELET, LEVELS = "bior2.6", 3

MOST_HEADER = 2**16

FOLDERS = ("mitdb/1.0.0", "mitdb", "mit-bih-arrhythmia-database-1.0.0", ".")
SUFFIXES = (".hea", ".dat", ".atr")


def load(
    root: Path,
    split: str = "beat",
    seed: int = 0,
    denoise: bool = True,
    limit: bool = True,
) -> Dataset:
    """Return beats as (N, 1, 128) float32, roughly in [0, 1]; train_group is an index in PATIENTS.

    With ``split="beat"`` that is 13,245 + 13,245 beats of 42 patients. With ``split="patient"`` the
    indices of the training patients have gaps where test patients are.

    Args:
        root: folder that holds one of FOLDERS.
        split: ``beat`` or ``patient``, see above.
        seed: draws the beats that are used, and with ``beat`` their side.
        denoise: False leaves the wavelet step out.
        limit: for ``patient`` only; use at most CLASS_COUNTS beats of each class on each side, so
            that the classes weigh about what they do in the other split. False uses every beat.

    Raises:
        FileNotFoundError: no folder has all records.
        ValueError: ``split`` is neither, a file is damaged, or a class has too few beats.
    """
    if split not in ("beat", "patient"):
        raise ValueError(f"split={split}: takes beat or patient")
    folder = find_folder(root)
    read = [read_beats(folder, record) for record in RECORDS]
    windows = np.concatenate([record_windows for record_windows, _ in read])
    labels = np.concatenate([record_labels for _, record_labels in read])
    records = np.repeat(
        np.array(RECORDS, dtype=np.int64), [len(record_labels) for _, record_labels in read]
    )
    if split == "beat":
        train, test = split_by_beat(labels, CLASS_COUNTS, seed)
    else:
        train, test = split_by_patient(labels, records, CLASS_COUNTS if limit else None, seed)
    return Dataset(
        train_x=torch.from_numpy(prepare(windows[train], denoise)).unsqueeze(1),
        train_y=torch.from_numpy(labels[train]),
        test_x=torch.from_numpy(prepare(windows[test], denoise)).unsqueeze(1),
        test_y=torch.from_numpy(labels[test]),
        num_classes=len(CLASSES),
        train_group=torch.from_numpy(patient_index(records[train])),
    )


def load_by_user(root: Path) -> Dataset:
    """Return the split for ``data.partition=natural``: test patients are nobody's client."""
    return load(root, split="patient")


def files(root: Path) -> list[Path]:
    """Return the three files of every record; raises as `find_folder`."""
    folder = find_folder(root)
    return [folder / f"{record}{suffix}" for record in RECORDS for suffix in SUFFIXES]


def find_folder(root: Path) -> Path:
    """Return the first of FOLDERS under ``root`` that has the three files of every record.

    Raises:
        FileNotFoundError: none has; says what was looked for, where, and how to get it.
    """
    candidates = [root / folder for folder in FOLDERS]
    missing = [_missing_files(folder) for folder in candidates]
    for folder, names in zip(candidates, missing, strict=True):
        if not names:
            return folder
    num_files = len(RECORDS) * len(SUFFIXES)
    partial = "".join(
        f"; {folder} lacks {len(names)} of the {num_files} files, {names[0]} first"
        for folder, names in zip(candidates, missing, strict=True)
        if len(names) < num_files
    )
    first = ", ".join(f"{RECORDS[0]}{suffix}" for suffix in SUFFIXES)
    raise FileNotFoundError(
        f"data.root={root}: no complete MIT-BIH Arrhythmia Database there; looked for {first} and "
        f"{len(RECORDS) - 1} records more in {', '.join(str(folder) for folder in candidates)}"
        f"{partial}; get it with wfdb.dl_database('mitdb', '{root / 'mitdb'}') or from "
        "https://physionet.org/content/mitdb/1.0.0/, or point data.root or CUTBIT_DATA at the "
        "folder above it"
    )


def read_beats(folder: Path, record: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return a record's beats of the five classes in their order: (B, 201) in mV, (B,) classes.

    Raises:
        ValueError: a file is damaged, or the first channel is not MLII at 360 Hz.
    """
    import wfdb

    path = folder / str(record)
    try:
        _check_header(path)
        signals = wfdb.rdrecord(str(path), channels=[0])
        notes = wfdb.rdann(str(path), "atr")
        signal, channel, rate_hz = signals.p_signal[:, 0], signals.sig_name[0], signals.fs
    except Exception as error:  # wfdb raises whatever its parsing stumbles over
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged record: {type(error).__name__}: {reason}") from error
    if signal.ndim != 1 or len(notes.symbol) != len(notes.sample):
        raise ValueError(f"{path}: damaged record: no signal with annotations")
    if not path.with_suffix(".atr").read_bytes().endswith(b"\0\0"):  # wfdb reads on regardless
        raise ValueError(f"{path}: damaged record: its annotations end before their end mark")
    if channel != CHANNEL or rate_hz != RATE_HZ:
        raise ValueError(
            f"{path}: first channel is {channel} at {rate_hz} Hz, not {CHANNEL} at {RATE_HZ} Hz"
        )
    symbols, positions = np.array(notes.symbol, dtype=str), np.asarray(notes.sample, dtype=np.int64)
    is_beat = np.isin(symbols, BEAT_SYMBOLS)
    return cut_windows(signal, positions[is_beat], symbols[is_beat])


def _check_header(path: Path) -> None:
    """Refuse a header that names other files than the record's, or more samples than those hold.

    Raises:
        ValueError: it does.
    """
    text = path.with_suffix(".hea").read_bytes()[:MOST_HEADER].decode("ascii")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    size, (first, *signals) = path.with_suffix(".dat").stat().st_size, lines
    found = re.fullmatch(rf"{path.name} (\d{{1,2}}) \d+(?:\.\d+)? (\d+)( .*)?", first.strip())
    if found is None or not 1 <= int(found[1]) == len(signals) or int(found[2][:20]) > size:
        raise ValueError(f"its header begins with {first[:80]!r}, its signals have {size} bytes")
    for line in signals:
        if not re.match(rf"{path.name}\.dat (16|212) ", line):
            raise ValueError(f"its header has a signal {line[:80]!r}, takes format 212 or 16 there")


def cut_windows(
    signal: NDArray[np.float64], peaks: NDArray[np.int64], symbols: NDArray[np.str_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cut out the window around each peak of the five classes that has its window for itself.

    Windows that reach beyond the signal or hold an invalid sample (NaN) are discarded too.

    Args:
        signal: (T,) mV.
        peaks: (P,) ascending sample numbers of all beats' R peaks.
        symbols: (P,) annotation of each peak.

    Returns:
        (B, 201) windows and (B,) classes.
    """
    apart = np.diff(peaks) > HALF_WINDOW
    alone = np.append(True, apart) & np.append(apart, True) if len(peaks) else apart
    inside = (peaks >= HALF_WINDOW) & (peaks + HALF_WINDOW < len(signal))
    keep = alone & inside & np.isin(symbols, list(CLASSES))
    offsets = np.arange(-HALF_WINDOW, HALF_WINDOW + 1)
    windows = signal[peaks[keep][:, None] + offsets]  # (B, 201)
    labels = np.array([CLASSES.index(symbol) for symbol in symbols[keep]], dtype=np.int64)
    valid = np.isfinite(windows).all(axis=1)
    return windows[valid], labels[valid]


def prepare(windows: NDArray[np.float64], denoise: bool = True) -> NDArray[np.float32]:
    """Scale, resample and denoise (B, 201) windows to (B, 128) float32 beats."""
    from scipy.signal import resample

    beats: NDArray[np.float64] = resample(scale(windows), BEAT_LENGTH, axis=1)
    if denoise:
        beats = wavelet_denoise(beats)
    return beats.astype(np.float32)


def scale(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale each row of (B, T) to [0, 1] by its minimum and maximum; a flat row becomes zeros."""
    lowest = windows.min(axis=1, keepdims=True)
    spread = windows.max(axis=1, keepdims=True) - lowest
    scaled: NDArray[np.float64] = (windows - lowest) / np.where(spread > 0, spread, 1.0)
    return scaled


def wavelet_denoise(beats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shrink the wavelet details of each row of (B, N) by the row's own threshold λ."""
    import pywt

    approximation, *details = pywt.wavedec(beats, WAVELET, level=LEVELS, axis=1)
    sigma = np.median(np.abs(details[-1]), axis=1, keepdims=True) / 0.6745  # details[-1]: finest
    threshold = sigma * math.sqrt(2 * math.log(beats.shape[1]))  # (B, 1)
    shrunk = [np.sign(d) * np.maximum(np.abs(d) - threshold, 0) for d in details]
    restored: NDArray[np.float64] = pywt.waverec([approximation, *shrunk], WAVELET, axis=1)
    return restored


def split_by_beat(
    labels: NDArray[np.int64], counts: Sequence[int], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw ``counts[c]`` training rows and as many other test rows of each class, both ascending.

    Raises:
        ValueError: a class has fewer than 2·counts[c] rows.
    """
    generator = np.random.default_rng(seed)
    train, test = [], []
    for label, count in enumerate(counts):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) < 2 * count:
            raise ValueError(
                f"split=beat: class {CLASSES[label]} has {len(rows)} beats in the "
                f"{len(RECORDS)} records, needs {2 * count}"
            )
        train.append(rows[:count])
        test.append(rows[count : 2 * count])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def split_by_patient(
    labels: NDArray[np.int64],
    records: NDArray[np.int64],
    limits: Sequence[int] | None,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of TRAIN_RECORDS and of TEST_RECORDS, both ascending.

    Args:
        labels: (B,) class of each beat.
        records: (B,) number of the record each beat comes from.
        limits: draw at most ``limits[c]`` rows of class c on each side; None takes all.
        seed: of the draw.

    Raises:
        ValueError: a class is missing on one side.
    """
    generator = np.random.default_rng(seed)
    sides = []
    for name, own in (("training", TRAIN_RECORDS), ("test", TEST_RECORDS)):
        here = np.isin(records, own)
        drawn = []
        for label, symbol in enumerate(CLASSES):
            rows = np.flatnonzero(here & (labels == label))
            if not len(rows):
                raise ValueError(f"split=patient: no {name} record has a beat of class {symbol}")
            if limits is not None:
                rows = generator.permutation(rows)[: limits[label]]
            drawn.append(rows)
        sides.append(np.sort(np.concatenate(drawn)))
    return sides[0], sides[1]


def patient_index(records: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index in PATIENTS of the person each record number belongs to."""
    return np.searchsorted(PATIENTS, np.where(records == 202, 201, records)).astype(np.int64)


def class_counts(labels: Any) -> dict[str, int]:
    """Return the number of beats of each class, by its letter, from (N,) labels."""
    counts = np.bincount(np.asarray(labels), minlength=len(CLASSES))
    return {symbol: int(count) for symbol, count in zip(CLASSES, counts, strict=True)}


def _missing_files(folder: Path) -> list[str]:
    """Names of the records' files that are not in the folder."""
    names = [f"{record}{suffix}" for record in RECORDS for suffix in SUFFIXES]
    return [name for name in names if not (folder / name).is_file()]
