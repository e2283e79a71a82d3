"""Text on the command line is what was typed."""

import pytest

from app.config.composition import compose, parsed
from app.config.quoting import as_typed, quoted
from app.jobs import expand


@pytest.mark.parametrize(
    "value",
    ["1_1_1", "007", "1e3", "true", "nan", "a [b] c", "~/x", "é è", "it's", "/a(b)/x", "/a{b}",
     "/x/a=b.npz", "C:\\x\\", "ends\\", "/it\\'s é", "/a [b, c]/d", "x y", "😀"],
)  # fmt: skip
def test_text_stays_as_it_was_typed(value: str) -> None:
    (override,) = parsed(as_typed([f"data.path={value}"]))
    assert str(override.value()) == value
    assert not override.is_sweep_override()
    assert as_typed(as_typed([f"data.path={value}"])) == as_typed([f"data.path={value}"])
    (override,) = parsed([f"key={quoted(value)}"])
    assert str(override.value()) == value


@pytest.mark.parametrize(
    "text",
    ["seed=1_0", "name=null", "name='1_1'", "name=${seed}", "name=a,b", "name=choice(1,2)",
     "name=range(1,3)", "data.path=[a]", "model.hidden=64", "train.lr=(x", "~name", "name=",
     "name=\"a,b\"", "experiment=oqfl", "quant.bits=2,3"],
)  # fmt: skip
def test_what_can_be_meant_otherwise_is_left(text: str) -> None:
    assert as_typed([text]) == [text]


def test_a_sweep_over_text() -> None:
    jobs = expand(as_typed(["name=1_1,ä,c"]), is_sweep=True)
    assert [compose(job).name for job in jobs] == ["1_1", "ä", "c"]


def test_configurations_hold_the_text() -> None:
    assert compose(["name=1_1_1"]).name == "1_1_1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=é", r"^seed=é: cannot be read; text with other signs than"),
        ("name=a,b", r"^name=a,b: several values are swept with -m; a list is \[a,b\]; text with"),
    ],
)
def test_what_cannot_be_read_says_how_to_quote(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        compose([text])
    assert "\n" not in str(caught.value)
