"""Server optimizers: against the formulas, against Flower's own classes, and in whole runs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SMALL, assert_same_arrays, assert_same_run, simulate, small
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from app import client, experiment
from app.config.composition import compose, config_hash, relevant
from app.engine import SerialGrid
from strategies import messages
from strategies.fedavg import FedAvg
from strategies.server.aggregation import AveragingSettings
from strategies.server.checkpoint import Checkpoints
from strategies.server.loop import FederatedStrategy
from strategies.server.server_optimizer import LEARNING_RATES, ServerOptimizer, ServerSettings

# Fewer clients and samples than `small` has.
TINY = ("clients.total=4", "data.max_train=64")
KINDS = ("fedavgm", "fedadam", "fedyogi")
SHAPES = {"b": (3,), "a.weight": (2, 3), "scale": ()}
STEP, FLAG = "a.weight_quantizer.step", "a.weight_quantizer.initialised"


def draw(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return {
        name: np.asarray(scale * generator.standard_normal(shape), dtype=np.float32)
        for name, shape in SHAPES.items()
    }


def by_formula(settings, start, averages):
    """w after each round, in float64, from the papers' formulas; ``averages`` is one per round."""
    kind, rate = settings.server_optimizer, settings.server_learning_rate
    b1, b2, tau = settings.beta_1, settings.beta_2, settings.tau
    w = {name: array.astype(np.float64) for name, array in start.items()}
    u, m, v = ({name: np.zeros_like(x) for name, x in w.items()} for _ in range(3))
    models = []
    for t, average in enumerate(averages, start=1):
        for name in w:
            delta = average[name].astype(np.float64) - w[name]
            u[name] = settings.server_momentum * u[name] - delta
            m[name] = b1 * m[name] + (1 - b1) * delta
            if kind == "fedavgm":
                w[name] = w[name] - rate * u[name]
            elif kind == "fedadam":
                v[name] = b2 * v[name] + (1 - b2) * delta**2
                bias = np.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))  # Flower's
                w[name] = w[name] + rate * bias * m[name] / (np.sqrt(v[name]) + tau)
            else:
                v[name] = v[name] - (1 - b2) * delta**2 * np.sign(v[name] - delta**2)
                w[name] = w[name] + rate * m[name] / (np.sqrt(v[name]) + tau)
        models.append({name: x.copy() for name, x in w.items()})
    return models


def step(optimizer, server_round, before, average, trained=tuple(SHAPES)):
    return optimizer.step(server_round, before, average, trained)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tau", [1e-3, 1e-1])
def test_six_rounds_follow_the_formula(kind, tau):
    settings = ServerSettings(kind, 0.05, server_momentum=0.7, beta_1=0.8, beta_2=0.95, tau=tau)
    optimizer, w = ServerOptimizer(settings), draw(0)
    # Averages near and far, and one parameter that stops changing, where Yogi's sign is minus.
    averages = [draw(seed, scale) for seed, scale in enumerate((1, 0.1, 3, 0.01, 1, 0.1), start=1)]
    expected = by_formula(settings, w, averages)
    for server_round, (average, wanted) in enumerate(zip(averages, expected, strict=True), 1):
        w = step(optimizer, server_round, w, average)
        for name in SHAPES:
            assert w[name].dtype == np.float32
            assert w[name].shape == SHAPES[name]
            np.testing.assert_allclose(w[name], wanted[name], rtol=2e-5, atol=2e-6)


def test_default_rates_are_flower_s():
    assert {
        "fedavgm": flower.FedAvgM().server_learning_rate,
        "fedadam": flower.FedAdam().eta,
        "fedyogi": flower.FedYogi().eta,
    } == LEARNING_RATES
    defaults, adam = ServerSettings(), flower.FedAdam()
    assert (defaults.beta_1, defaults.beta_2, defaults.tau) == (adam.beta_1, adam.beta_2, adam.tau)


@pytest.mark.parametrize("kind", KINDS)
def test_is_flower_s_class_bit_for_bit(kind):
    """Its own aggregate_train over a single reply, which averages to itself."""
    theirs = {
        "fedavgm": lambda: flower.FedAvgM(server_learning_rate=0.1, server_momentum=0.9),
        "fedadam": lambda: flower.FedAdam(eta=0.1),
        "fedyogi": lambda: flower.FedYogi(eta=0.1),
    }[kind]()
    mine, w = ServerOptimizer(ServerSettings(kind, 0.1)), draw(0)
    for server_round in range(1, 5):
        average = draw(server_round)
        ordered = {name: average[name] for name in sorted(SHAPES)}
        before = {name: w[name] for name in sorted(SHAPES)}
        is_adaptive = kind != "fedavgm"
        theirs.current_arrays = before if is_adaptive else messages.to_record(before)
        content = RecordDict(
            {
                "arrays": messages.to_record(ordered),
                "metrics": MetricRecord({messages.NUM_EXAMPLES: 1}),
            }
        )
        reply = SimpleNamespace(content=content, has_error=lambda: False)
        record, _ = theirs.aggregate_train(server_round, [reply])
        w = step(mine, server_round, w, average)
        wanted = {n: a.astype(np.float32) for n, a in messages.to_arrays(record).items()}
        assert_same_arrays({n: w[n] for n in wanted}, wanted)


@hypothesis_settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(KINDS), stop=st.integers(0, 4), seed=st.integers(0, 99))
def test_memory_taken_out_and_back_changes_no_bit(kind, stop, seed):
    optimizer, w = ServerOptimizer(ServerSettings(kind)), draw(seed)
    other, other_w = ServerOptimizer(ServerSettings(kind)), draw(seed)
    for server_round in range(1, 6):
        average = draw(seed + server_round)
        w = step(optimizer, server_round, w, average)
        other_w = step(other, server_round, other_w, average)
        if server_round == stop:  # as a file gives it back: by name, not in the order it had
            state = dict(sorted(other.state().items(), reverse=True))
            other = ServerOptimizer(ServerSettings(kind))
            other.load_state(state)
    assert_same_arrays(w, other_w)
    assert_same_arrays(optimizer.state(), other.state())


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_named_by_parameter_and_can_be_forgotten(kind):
    optimizer = ServerOptimizer(ServerSettings(kind))
    assert optimizer.state() == {}
    first = step(optimizer, 1, draw(0), draw(1))
    slots = ("momentum_vector",) if kind == "fedavgm" else ("m_t", "v_t")
    assert {name: array.shape for name, array in optimizer.state().items()} == {
        f"server_optimizer.{slot}.{name}": shape for slot in slots for name, shape in SHAPES.items()
    }
    optimizer.load_state({})
    assert optimizer.state() == {}
    assert_same_arrays(step(optimizer, 1, draw(0), draw(1)), first)


# What is touched ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_trains_is_stepped(kind):
    before = {"w": np.zeros(2, np.float32), "running_mean": np.zeros(2, np.float32)}
    before["num_batches_tracked"] = np.array(3)
    average = {"w": np.ones(2, np.float32), "running_mean": np.ones(2, np.float32)}
    average["num_batches_tracked"] = np.array(5)
    optimizer = ServerOptimizer(ServerSettings(kind, 0.25))
    after = step(optimizer, 1, before, average, ["w"])
    assert list(after) == list(average)
    assert not np.array_equal(after["w"], average["w"])
    for name in ("running_mean", "num_batches_tracked"):
        assert after[name] is average[name]
    assert all(name.endswith(".w") for name in optimizer.state())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (2, 1, 1, 1)])
def test_an_unset_step_takes_the_average_and_leaves_no_memory(kind, shape):
    def state(step_size, is_set):
        return {STEP: np.full(shape, step_size, np.float32), FLAG: np.array(is_set)}

    optimizer = ServerOptimizer(ServerSettings(kind, 0.001))
    unset = step(optimizer, 1, state(1.0, False), state(1.0, False), [STEP])  # nobody has set it
    assert (unset[STEP] == 1).all()
    first = step(optimizer, 2, state(1.0, False), state(0.02, True), [STEP])
    assert (first[STEP] == np.float32(0.02)).all()
    assert all((array == 0).all() for array in optimizer.state().values())
    second = step(optimizer, 3, state(0.02, True), state(0.03, True), [STEP])
    assert (second[STEP] > np.float32(0.02)).all()
    assert (second[STEP] < np.float32(0.03)).all()


@hypothesis_settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(KINDS),
    rate=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    steps=st.lists(st.floats(2**-12, 2**6, width=32), min_size=2, max_size=5),
)
def test_a_step_is_stepped_by_its_logarithm(kind, rate, steps):
    """Against the optimizer itself over logarithms, within a factor of 10 a round."""
    settings = ServerSettings(kind, rate)
    optimizer, plain = ServerOptimizer(settings), ServerOptimizer(settings)
    now = np.asarray(steps[0], np.float32)
    for server_round, target in enumerate(steps[1:], start=1):
        state = {STEP: now, FLAG: np.array(True)}
        average = {STEP: np.asarray(target, np.float32), FLAG: np.array(True)}
        after = step(optimizer, server_round, state, average, [STEP])[STEP]
        logs = [{"w": np.log(np.asarray(array, np.float64))} for array in (now, target)]
        wanted = step(plain, server_round, *logs, ["w"])["w"]
        change = np.clip(wanted - logs[0]["w"], -np.log(10), np.log(10))
        expected = max(float(now * np.exp(change)), 1e-8)
        assert after.dtype == np.float32
        assert after > 0
        assert float(after) == pytest.approx(expected, rel=1e-5)
        now = after


# Whole runs ---------------------------------------------------------------------------------------


def chosen(kind, *overrides):
    return (f"strategy.server_optimizer={kind}", "strategy.server_learning_rate=0.01", *overrides)


def test_fedavgm_without_momentum_is_fedavg_bit_for_bit(tmp_path: Path):
    common = ("strategy=fedavg", "model.norm=batch", *TINY)
    still = ("strategy.server_momentum=0", "strategy.server_learning_rate=1")
    simulate(tmp_path / "plain", *common)
    simulate(tmp_path / "still", *common, "strategy.server_optimizer=fedavgm", *still)
    assert_same_run(tmp_path / "plain", tmp_path / "still")


def test_a_first_step_of_fedavgm_is_the_average_but_for_rounding(tmp_path: Path):
    """w − (w − a) rounds twice in float32."""
    common = ("strategy=fedavg", "rounds=1", *TINY)
    simulate(tmp_path / "plain", *common)
    simulate(tmp_path / "m", *common, "strategy.server_optimizer=fedavgm")
    plain, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "m"))
    for name in plain:
        np.testing.assert_allclose(other[name], plain[name], rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("strategy", ["fedavg", "oqfl"])
def test_buffers_take_the_plain_average(strategy: str, tmp_path: Path):
    common = (
        f"strategy={strategy}",
        "model.norm=batch",
        "rounds=1",
        "quant.learn_step=false",
        *TINY,
    )
    config = small(*common)
    model = experiment.prepare(config, experiment.strategy(config))
    simulate(tmp_path / "plain", *common)
    simulate(tmp_path / "adam", *common, *chosen("fedadam"))
    plain, adam = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "adam"))
    buffers = [name for name, _ in model.named_buffers()]
    assert any(name.endswith("running_var") for name in buffers)
    assert any(name.endswith("step") for name in buffers) == (strategy == "oqfl")
    assert_same_arrays({n: plain[n] for n in buffers}, {n: adam[n] for n in buffers})
    for name, _ in model.named_parameters():
        assert not np.array_equal(plain[name], adam[name]), name


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=fedavg", *chosen("fedavgm")),
        ("strategy=fedavg", *chosen("fedadam"), "clients.per_round=3", "model.norm=batch"),
        ("strategy=oqfl", *chosen("fedyogi"), "quant.wire=codes_both"),
        ("strategy=oqfl", *chosen("fedadam"), "quant.per_channel=true"),
    ],
    ids=" ".join,
)
def test_stopped_and_continued_equals_never_stopped(overrides: tuple[str, ...], tmp_path: Path):
    simulate(tmp_path / "whole", *overrides, *TINY, "rounds=4")
    simulate(tmp_path / "stopped", *overrides, *TINY, "rounds=2")
    found = Checkpoints(tmp_path / "stopped" / "checkpoint").latest()
    assert found is not None
    assert any(np.any(array != 0) for array in found.extra.values())
    simulate(tmp_path / "stopped", *overrides, *TINY, "rounds=4", "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    ends = [Checkpoints(tmp_path / n / "checkpoint").latest() for n in ("whole", "stopped")]
    assert_same_arrays(ends[0].extra, ends[1].extra)  # type: ignore[union-attr]


def test_the_optimizer_is_not_the_plain_average(tmp_path: Path):
    models = set()
    for kind in ("none", *KINDS):
        simulate(tmp_path / kind, "strategy=fedavg", *chosen(kind), *TINY)
        models.add((tmp_path / kind / "model.safetensors").read_bytes())
    assert len(models) == 4
    found = Checkpoints(tmp_path / "none" / "checkpoint").latest()
    assert found is not None
    assert found.extra == {}


def session(strategy):
    """A grid of the small experiment's clients, and its initial arrays."""
    config = small("strategy=fedavg", *TINY)
    grid = SerialGrid(4, experiment.run_config(config), client.app)
    return grid, messages.to_record(experiment.prepare(config, strategy).state_dict())


def test_flower_s_two_calls_are_a_round():
    adam = AveragingSettings(server_optimizer="fedadam", server_learning_rate=0.01)
    made = [FedAvg(averaging=adam, seed=1) for _ in range(2)]
    grid, initial = session(made[0])
    whole = messages.to_arrays(made[0].start(grid, initial, num_rounds=1).arrays)
    grid, initial = session(made[1])
    sent = made[1].configure_train(1, initial, ConfigRecord(), grid)
    arrays, _ = made[1].aggregate_train(1, list(grid.send_and_receive(sent)))
    assert arrays is not None
    assert_same_arrays(whole, messages.to_arrays(arrays))


def test_a_strategy_starts_again_without_memory():
    made = FedAvg(averaging=AveragingSettings(server_optimizer="fedavgm"))
    grid, initial = session(made)
    first = made.start(grid, initial, num_rounds=2).arrays
    second = made.start(grid, initial, num_rounds=2).arrays
    assert_same_arrays(messages.to_arrays(first), messages.to_arrays(second))


def test_a_method_s_own_state_is_kept_apart(tmp_path: Path):
    averaging = AveragingSettings(server_optimizer="fedyogi")
    plain = FedAvg(averaging=averaging).method
    seen = []

    def counting(state, results, trained):
        seen.append(state.extra.get("count"))
        return plain.aggregate(state.keeping("count", {"": np.array(7)}), results, trained)

    made = FederatedStrategy(replace(plain, aggregate=counting))
    grid, initial = session(made)
    made.start(grid, initial, num_rounds=1, checkpoints=Checkpoints(tmp_path))
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert len(found.extra) > 1
    made.start(grid, initial, num_rounds=2, resume_from=found)
    assert seen == [None, 7]


def test_prepare_is_asked_for_before_anybody_trains():
    grid, initial = session(FedAvg())
    with pytest.raises(RuntimeError, match=r"server_optimizer needs prepare\(\) before start\(\)"):
        FedAvg(averaging=AveragingSettings(server_optimizer="fedadam")).start(
            grid, initial, num_rounds=1
        )


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fedavg", "oqfl"])
def test_a_setting_that_is_not_read_is_not_part_of_the_experiment(strategy: str):
    def identity(*overrides):
        config = compose([*SMALL, f"strategy={strategy}", *overrides])
        return config_hash(config, ()), relevant(config, ())

    plain, keys = identity()
    assert keys["strategy.server_optimizer"] == "none"
    assert not {"strategy.tau", "strategy.beta_1", "strategy.server_momentum"} & keys.keys()
    assert identity("strategy.tau=0.1", "strategy.server_learning_rate=0.5")[0] == plain
    adam, keys = identity(*chosen("fedadam"))
    assert "strategy.tau" in keys
    assert adam != plain
    assert identity(*chosen("fedadam"), "strategy.server_momentum=0.5")[0] == adam
    assert identity(*chosen("fedadam"), "strategy.tau=0.1")[0] != adam
    momentum = identity(*chosen("fedavgm"))[0]
    assert identity(*chosen("fedavgm"), "strategy.beta_1=0.5")[0] == momentum
    assert identity(*chosen("fedavgm"), "strategy.server_momentum=0.5")[0] != momentum


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "strategy.server_optimizer=adam",
            "strategy.server_optimizer=adam: takes none, fedavgm, fedadam, fedyogi",
        ),
        (
            "strategy.server_learning_rate=0",
            "strategy.server_learning_rate=0: takes a finite number above 0, or null",
        ),
        (
            "strategy.server_learning_rate=inf",
            "strategy.server_learning_rate=inf: takes a finite number above 0, or null",
        ),
        ("strategy.server_momentum=1", "strategy.server_momentum=1: takes 0 or more, and less"),
        ("strategy.beta_1=true", "strategy.beta_1=True: takes 0 or more, and less than 1"),
        ("strategy.beta_2=-0.1", "strategy.beta_2=-0.1: takes 0 or more, and less than 1"),
        ("strategy.tau=0", "strategy.tau=0: takes a finite number above 0"),
        ("strategy.tau=small", "strategy.tau=small: takes a finite number above 0"),
        (
            "strategy.server_lr=0.1",
            "strategy.server_lr: unknown key; did you mean strategy.server_",
        ),
    ],
)
def test_wrong_settings_are_one_line(override: str, message: str):
    with pytest.raises(ValueError) as caught:
        compose([override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
