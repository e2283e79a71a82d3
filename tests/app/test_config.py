"""The command line: what is accepted, and one clear line for what is not."""

import pickle
from pathlib import Path

import pytest
from command_line import run
from conftest import SMALL, simulate

from app import build_fleet as fleets
from app import experiment
from app.config.composition import compose, config_hash, relevant
from app.config.schema import Config
from app.experiment import Experiment, parts_of, resolve
from app.jobs import Jobs, expand

WRONG = [
    ("strategy=nothing", "strategy=nothing: takes binarized_split, deprune, "),
    (
        "data=imagenet",
        "data=imagenet: takes arrays, cifar10, diabetes, digits, fashion_mnist, hub, mi",
    ),
    ("foo=1", "foo: unknown key"),
    ("quant.bit=4", "quant.bit: unknown key; did you mean quant.bits"),
    ("batch_size=4", "batch_size: unknown key; did you mean train.batch_size"),
    ("strategy.mu=1", "strategy.mu: unknown key"),
    ("+foo=1", "+foo: unknown key"),
    ("+train.foo=1", "+train.foo: unknown key"),
    ("++train.foo=1", "++train.foo: unknown key"),
    ("~strategy.average", "~strategy.average: keys cannot be taken away"),
    ("name='e(1)'", "name='e(1)': takes a folder name"),
    ("rounds=abc", "rounds=abc: takes an integer"),
    ("rounds=1.5", "rounds=1.5: takes an integer"),
    ("rounds=0", "rounds=0: takes 1 or more"),
    ("seed=-1", "seed=-1: takes 0 or more"),
    ("clients.total=0", "clients.total=0: takes 1 or more"),
    ("clients.total=1000000000", "clients.total=1000000000: takes 1000000 or fewer"),
    ("seed=9223372036854775808", "seed=9223372036854775808: takes less than 2^63"),
    ("train.epochs=1000000", "train.epochs=1000000: takes 100000 or fewer"),
    ("fleet.jitter=1e308", "fleet.jitter=1e+308: takes a finite number from 0 to 10"),
    ("strategy.server_optimizer=[1]", "strategy.server_optimizer=[1]: unhashable"),
    ("data=0", "data=0: takes the name of a file in conf/data"),
    ("strategy=[1]", "strategy=[1]: takes the name of a file in conf/strategy"),
    ("name=" + "[" * 1000, "name=[[["),
    ("seed=" + "9" * 5000, "seed=999"),
    ("name='", 'name="\'": takes a folder name'),
    ("seed='", "seed=': cannot be read; text with other signs"),
    (
        "clients.per_round=101",
        "clients.per_round=101: takes an integer from 1 to clients.total=100",
    ),
    ("clients.per_round=1.5", "clients.per_round=1.5: takes"),
    ("clients.per_round=0", "clients.per_round=0: takes"),
    ("clients.per_round=all", "clients.per_round=all: takes"),
    ("clients.per_round=true", "clients.per_round=True: takes"),
    ("quant.bits=1", "quant.bits=1: takes 2 to 8, 32 or null"),
    ("quant.bits=9", "quant.bits=9: takes 2 to 8, 32 or null"),
    ("quant.edge_bits=0", "quant.edge_bits=0: takes 2 to 8, 32 or null"),
    ("quant.wire=zip", "quant.wire=zip: takes latent, codes, codes_both, updates"),
    ("quant.learn_step=maybe", "quant.learn_step=maybe: takes true or false"),
    ("train.lr=-0.1", "train.lr=-0.1: takes 0 or more"),
    ("train.lr=fast", "train.lr=fast: takes a number"),
    ("train.optimizer=lion", "train.optimizer=lion: takes sgd, adam, adamw"),
    ("train.epochs=0", "train.epochs=0: takes 1 or more"),
    ("data.partition=random", "data.partition=random: takes iid, dirichlet, shards, natural"),
    ("data.path=x.npz", "data.path=x.npz: data=digits does not read it; data=arrays and data=hub"),
    ("data.content=abc", "data.content=abc: is found at data.path, not given"),
    ("data=arrays", "data.path: data=arrays needs it: a .npz file"),
    ("data=hub", "data.path: data=hub needs it: a name on the Hub or a folder"),
    ("data.shape=[]", "data.shape=[], data.num_classes=10: data=digits takes positive ones"),
    ("data.options.label=x", "data.options.label: unknown key"),
    ("train.augment=rotate", "train.augment=rotate: takes none, crop_flip"),
    ("model.weights=x.pth", "model.weights=x.pth: no such file"),
    ("model.replace_head=maybe", "model.replace_head=maybe: takes true or false"),
    ("data.alpha=0", "data.alpha=0.0: takes a finite number above 0"),
    ("target_accuracy=90", "target_accuracy=90.0: takes a share in (0, 1]"),
    ("name=../elsewhere", "name='../elsewhere': takes a folder name under runs/, of letters"),
    ("strategy.average=mode", "strategy.average=mode: takes mean, median, trimmed_mean, krum"),
    ("tracker.wandb.mode=on", "tracker.wandb.mode=on: takes offline, online, disabled or null"),
    ("checkpoint.keep=0", "checkpoint.keep=0: takes 1 or more"),
    ("engine.workers=0", "engine.workers=0: takes 1 or more"),
    ("engine.client_timeout_s=0", "engine.client_timeout_s=0.0: takes seconds above 0 and up to"),
    ("engine.client_timeout_s=nan", "engine.client_timeout_s=nan: takes seconds above 0 and up"),
    ("train.server_lr=0", "train.server_lr=0: takes a positive number, or null for train.lr"),
    ("prune.ratio=null", "prune.ratio=null: takes a value"),
    ("link=exact", "link=exact: is a group of keys; set link.up, link.down, link.k"),
    ("clients=4", "clients=4: is a group of keys; set clients.total, clients.per_round"),
    ("prune.source_content=x", "prune.source_content: is found at prune.source, not given"),
]


def composed(*overrides: str) -> Config:
    """The configuration of a small experiment."""
    return compose([*SMALL, *overrides])


def test_a_trace_is_what_it_holds_not_where_it_lies(tmp_path: Path) -> None:
    hashes = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        config = compose(["fleet=trace", f"fleet.capacity={tmp_path / name}"])
        hashes.append(config_hash(config, ("fleet",)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_key_of_other_methods_is_not_proposed_again() -> None:
    with pytest.raises(ValueError, match="unknown key; other methods take it, this one does not"):
        compose(["strategy=hierarchical", "strategy.server_optimizer=fedadam"])


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_wrong_values_name_key_value_and_what_is_taken(override: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        compose([override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_contradictory_bits() -> None:
    with pytest.raises(ValueError, match=r"quant\.bits=4: contradicts"):
        compose(["quant.bits=4", "quant.weight_bits=2", "quant.act_bits=8"])
    spec = compose(["quant.bits=4", "quant.weight_bits=2"]).quant.spec(32)
    assert (spec.weight_bits, spec.act_bits) == (2, 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=lenet5"],
            "model=lenet5 with data=digits: .*at least 12×12.*smallest it takes is 12",
        ),
        (["model._target_=nowhere.Net"], r"model\._target_=nowhere\.Net: cannot be imported"),
        (
            ["model.depth=9"],
            r"model\.depth: models\.cnn\.CNN does not take it; it takes width, norm",
        ),
        (
            ["strategy=deprune", "strategy.base=null"],
            r"strategy\.base=null: takes split, splitfed_v1, splitfed_v2",
        ),
        (["model.width=7"], r"model\.width=7: takes a positive multiple of 4"),
        (["data.samples_per_client=500"], r"data\.samples_per_client=500: 100 clients need 50000"),
        (
            ["clients.total=2000", "data.partition=shards"],
            r"data\.partition=shards: 2000 clients need",
        ),
    ],
)
def test_what_does_not_fit_together_stops_before_the_run(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Jobs().check(overrides, is_sweep=False)


def test_every_job_of_a_sweep_is_checked_before_the_first() -> None:
    with pytest.raises(ValueError, match="model=lenet5 with data=digits"):
        Jobs().check(["model=cnn,lenet5", "clients.total=3"], is_sweep=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["strategy=binarized_split", "train.batch_size=1", "privacy.dcor_weight=0,0.5"],
            r"train\.batch_size=1: privacy\.dcor_weight",
        ),
        (
            ["strategy=splitfed_v1", "fleet=mobile", "split.cut={phone_low:stage1}", "seed=0,2"],
            r"split\.cut: says nothing of client 0",
        ),
        (
            ["strategy=splitfed_v1", "fleet=mobile", "fleet.deadline_s=10", "seed=0,3"],
            r"fleet\.deadline_s=10: no client can meet the deadline",
        ),
    ],
)
def test_of_jobs_that_are_nearly_the_same_each_is_checked(
    overrides: list[str], message: str
) -> None:
    """Seeds draw devices: a cut for each, or a deadline, can fit those of one seed alone."""
    few = ("clients.total=2", "tracker.wandb.mode=disabled")
    with pytest.raises(ValueError, match=message):
        Jobs().check([*overrides, *few], is_sweep=True)
    first = [text.split(",")[0] for text in overrides]
    Jobs().check([*first, *few], is_sweep=False)


def test_networks_and_cuts_are_checked_once_for_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    check_network = experiment.check_network

    def counted(chosen: Experiment) -> None:
        checked.append(chosen.seed)
        check_network(chosen)

    monkeypatch.setattr(experiment, "check_network", counted)
    jobs = ["strategy=splitfed_v1", "fleet=mobile", "clients.total=3", "seed=0,1,2,3"]
    Jobs().check([*jobs, "link.up=fp32,int8"], is_sweep=True)
    assert checked == [0, 0]
    Jobs().check([*jobs, "split.cut=auto"], is_sweep=True)
    assert checked == [0, 0, 0, 1, 2, 3]


def test_missing_data_say_what_was_looked_for_and_where() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data\.root=/nowhere: no MNIST there.*CUTBIT_DATA"
    ):
        Jobs().check(["data=mnist", "data.root=/nowhere"], is_sweep=False)


def test_expand_is_the_product() -> None:
    jobs = expand(["strategy=fedavg,oqfl", "quant.bits=2,4", "seed=0"], is_sweep=True)
    assert len(jobs) == 4
    assert jobs[1] == ["strategy=fedavg", "quant.bits=4", "seed=0"]


def test_an_integer_counts_clients_and_a_float_is_a_share() -> None:
    assert compose(["clients.per_round=1"]).clients.per_round == 1
    assert isinstance(compose(["clients.per_round=1"]).clients.per_round, int)
    assert isinstance(compose(["clients.per_round=1.0"]).clients.per_round, float)


def test_online_without_a_key_is_refused_before_wandb_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    with pytest.raises(ValueError, match=r"wandb\.mode=online: no key for https://wandb\.example"):
        Jobs().check(["tracker.wandb.mode=online"], is_sweep=False)
    (tmp_path / "netrc").write_text("machine wandb.example login user password " + "0" * 40)
    (tmp_path / "netrc").chmod(0o600)
    Jobs().check(["tracker.wandb.mode=online"], is_sweep=False)


def test_a_cluster_that_does_not_answer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"engine\.address=127\.0\.0\.1:1: nothing answers there"):
        Jobs().check(["engine.address=127.0.0.1:1"], is_sweep=False)


def test_a_relative_data_folder_becomes_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose(["data.root=somewhere"]).data.root == str(tmp_path / "somewhere")


def test_traces_are_the_servers_and_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A client has the same parts in another folder, and without them."""
    rows = {"1": {"computation": 20.0, "communication": 5000.0}}
    (tmp_path / "capacity.pickle").write_bytes(pickle.dumps(rows))
    spans = {"1": {"active": [0.0], "inactive": [50.0], "finish_time": 60.0}}
    (tmp_path / "days.pickle").write_bytes(pickle.dumps(spans))
    monkeypatch.chdir(tmp_path)
    traces = ("fleet.capacity=capacity.pickle", "fleet.availability=days.pickle")
    config = composed("fleet=trace", *traces, "fleet.deadline_s=9")
    monkeypatch.chdir("/")
    assert config.fleet.capacity == str(tmp_path / "capacity.pickle")
    assert config.fleet.availability == str(tmp_path / "days.pickle")
    sent = pickle.loads(pickle.dumps(parts_of(config)))
    fleets.make(config.fleet, config.clients.total, config.seed)
    for name, message in (
        ("days.pickle", r"fleet\.availability=.*days\.pickle: takes always, a probability"),
        ("capacity.pickle", r"fleet\.capacity=.*capacity\.pickle: no such file"),
    ):
        (tmp_path / name).unlink()
        assert parts_of(config) == sent
        with pytest.raises(FileNotFoundError, match=message):
            resolve(config)


# What identifies an experiment --------------------------------------------------------------------


def test_hash_leaves_out_what_changes_nothing() -> None:
    base = config_hash(composed(), ("quant",))
    same = ["name=other", "engine.workers=7", "tracker.wandb.project=p", "checkpoint.keep=9"]
    same += ["resume=true", "data.root=/elsewhere", "target_accuracy=0.5", "data.alpha=3"]
    for override in same:
        assert config_hash(composed(override), ("quant",)) == base, override
    for override in ["seed=1", "rounds=9", "quant.bits=3", "train.lr=0.2", "model.width=8"]:
        assert config_hash(composed(override), ("quant",)) != base, override


def test_hash_leaves_out_what_the_method_does_not_read() -> None:
    two, four = (composed("strategy=fedavg", f"quant.bits={bits}") for bits in (2, 4))
    assert config_hash(two, ()) == config_hash(four, ())
    assert not any(key.startswith("quant.") for key in relevant(two, ()))


# The process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["rounds=0"], ["-m", "quant.bits=4,9"], ["-m", "bits=2,4"]])
def test_exit_code_and_one_line(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_help_and_cfg() -> None:
    assert "python main.py -m strategy=oqfl quant.bits=2,3,4,8" in run("--help").stdout
    shown = run("--cfg", "job", "quant.bits=3")
    assert shown.returncode == 0
    assert "bits: 3" in shown.stdout


def test_image_size(tmp_path: Path) -> None:
    summary = simulate(tmp_path, "data.image_size=16", "data.max_test=40", "rounds=1")
    assert (
        summary["client_flops_per_sample"]
        > 3
        * simulate(tmp_path / "small", "data.max_test=40", "rounds=1")["client_flops_per_sample"]
    )
    with pytest.raises(ValueError, match=r"data\.image_size=64: takes images .* data=mitbih"):
        compose(["data=mitbih", "data.image_size=64"])
    with pytest.raises(ValueError, match=r"data\.image_size=0: takes 1 or more"):
        compose(["data.image_size=0"])
