"""What outputs are for: losses and figures against numpy and scikit-learn, bytes, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor, nn

from app.evaluation import EVALUATION_BATCH, measure
from models.objective import KINDS, Classification, Own, TaskSettings, kind_of_labels
from models.precision import BF16, computing

COUNT, CLASSES, PLACES = 7, 5, 3


def drawn(task: str, count: int = COUNT, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs and labels of a task."""
    g = torch.Generator().manual_seed(seed)
    shape = {"tokens": (count, PLACES, CLASSES)}.get(task, (count, CLASSES))
    outputs = torch.randn(shape, generator=g)
    if task == "regression":
        return outputs, torch.randn(shape, generator=g)
    if task == "multilabel":
        return outputs, torch.randint(2, shape, generator=g).to(torch.uint8)
    return outputs, torch.randint(CLASSES, shape[:-1], generator=g)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def by_hand(task: str, loss: str, outputs: Tensor, labels: Tensor) -> float:
    """The mean loss in float64, from its formula."""
    z, y = outputs.double().numpy(), labels.double().numpy()
    if task in ("classification", "tokens"):
        z, y = z.reshape(-1, CLASSES), labels.numpy().reshape(-1)
        own = z[np.arange(len(y)), y][:, None]
        if loss == "multi_margin":
            margins = np.maximum(0, 1 - own + z)
            margins[np.arange(len(y)), y] = 0
            return float(margins.sum(1).mean() / CLASSES)
        return float(-np.log(np.exp(own) / np.exp(z).sum(1, keepdims=True)).mean())
    if task == "multilabel":
        return float((softplus(z) - z * y).mean())
    error = z - y
    return float(
        {
            "mse": error**2,
            "l1": np.abs(error),
            "huber": np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5),
        }[loss].mean()
    )


@pytest.mark.parametrize(
    ("task", "loss"), [(task, loss) for task, kind in KINDS.items() for loss in kind.losses]
)
def test_losses_are_their_formulas(task: str, loss: str) -> None:
    outputs, labels = drawn(task)
    objective = TaskSettings(task, loss).objective()
    value = float(objective.loss(outputs, labels))
    assert value == pytest.approx(by_hand(task, loss, outputs, labels), rel=1e-5)
    # Labels that crossed a cut are whole numbers of another type.
    crossed = labels if labels.is_floating_point() else labels.long()
    assert float(objective.loss(outputs, crossed)) == value


class Fixed(nn.Module):
    """Gives rows of a table: sample i is the number i."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs[x.long()]


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("count", [1, EVALUATION_BATCH, EVALUATION_BATCH + 1])
def test_figures_are_those_of_scikit_learn(task: str, count: int) -> None:
    outputs, labels = drawn(task, count)
    objective = TaskSettings(task).objective()
    found = measure(Fixed(outputs), torch.arange(count), labels, objective)
    y = labels.numpy()
    assert found["loss"] == pytest.approx(
        by_hand(task, TaskSettings(task).loss_name, outputs, labels), rel=1e-5
    )
    if task == "regression":
        mse = metrics.mean_squared_error(y, outputs.numpy())
        assert found["mse"] == pytest.approx(mse, rel=1e-5)
        if count > 1:
            spread = ((y - y.mean(0)) ** 2).sum()
            expected = 1 - ((y - outputs.numpy()) ** 2).sum() / spread
            assert found["r2"] == pytest.approx(expected, rel=1e-4)
        assert found["accuracy"] == max(0.0, found["r2"])
    elif task == "multilabel":
        right = (outputs.numpy() > 0) == (y > 0)
        assert found["accuracy"] == pytest.approx(right.mean())
        assert found["exact_match"] == metrics.accuracy_score(y, outputs.numpy() > 0)
    else:
        answers = outputs.argmax(-1).numpy().reshape(-1)
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y.reshape(-1), answers))
    if task == "tokens":
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_r2_of_one_number_is_scikit_learns() -> None:
    y = torch.randn(40, 1, generator=torch.Generator().manual_seed(1))
    outputs = y + 0.3 * torch.randn(40, 1, generator=torch.Generator().manual_seed(2))
    objective = TaskSettings("regression").objective()
    found = measure(Fixed(outputs), torch.arange(40), y, objective)
    assert found["accuracy"] == pytest.approx(metrics.r2_score(y, outputs), rel=1e-5)


def test_constant_labels_and_huge_losses_have_figures() -> None:
    regression, tokens = TaskSettings("regression").objective(), TaskSettings("tokens").objective()
    y = torch.full((4, 2), 3.0)
    assert measure(Fixed(y), torch.arange(4), y, regression)["r2"] == 1.0
    assert measure(Fixed(y + 1), torch.arange(4), y, regression)["accuracy"] == 0.0
    outputs = torch.tensor([[[1e4, 0.0]]])
    found = measure(Fixed(outputs), torch.arange(1), torch.tensor([[1]]), tokens)
    assert found["perplexity"] == math.inf


def test_classes_are_counted_as_before() -> None:
    """Bit for bit: sums over batches of right answers and of cross-entropy."""
    outputs, labels = drawn("classification", 1203)
    right, loss = 0, 0.0
    for z, y in zip(*(whole.split(EVALUATION_BATCH) for whole in (outputs, labels)), strict=True):
        right += int((z.argmax(1) == y).sum())
        loss += float(nn.functional.cross_entropy(z, y, reduction="sum"))
    found = measure(Fixed(outputs), torch.arange(1203), labels, Classification())
    assert found == {"accuracy": right / 1203, "loss": loss / 1203}


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 70_000), st.integers(1, 9))
def test_bytes_of_labels_are_those_of_the_tensor_that_crosses(
    task: str, num_classes: int, places: int
) -> None:
    objective = KINDS[task]()
    shape = objective.output_shape(num_classes, (places,))
    labels = {"tokens": (places,), "classification": ()}.get(task, (num_classes,))
    dtype = objective.label_dtype(num_classes)
    sent = torch.zeros(labels, dtype=torch.int64).to(dtype)
    assert objective.label_bytes(shape) == sent.numel() * sent.element_size()
    if task in ("tokens", "classification"):  # the last class arrives
        assert int(torch.tensor(num_classes - 1).to(dtype).long()) == num_classes - 1


def test_labels_say_whose_they_are() -> None:
    for task in KINDS:
        _, labels = drawn(task)
        assert kind_of_labels(labels) == task
        for other in KINDS:
            refusal = KINDS[other]().refusal(labels, CLASSES)
            assert bool(refusal) == (other != task), (task, other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "ranking"}, "task.name=ranking: takes classification, multilabel, regression"),
        ({"loss": "mse"}, "task.loss=mse: task=classification takes cross_entropy, multi_margin"),
        ({"name": "tokens", "loss": "l1"}, "task.loss=l1: task=tokens takes cross_entropy"),
        ({"loss": "mse", "_target_": "a.B"}, "task.loss=mse: task._target_ has a loss of its own"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        TaskSettings(**given)
    assert str(caught.value).startswith(message)


class Focal:
    """A task of the user's own: classes, and a loss that torch lacks."""

    kind = "classification"

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        own = outputs.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        return -((1 - own.exp()) ** 2 * own).mean()

    def accuracy(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.argmax(1) == labels).float().mean()


class Similar(Focal):
    """Its loss has a product, which autocast would compute in bfloat16."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        alike = (labels[:, None] == labels).float()
        return (outputs @ outputs.T - alike).square().mean()


class NoLoss:
    """Half a task."""

    def accuracy(self, outputs: Tensor, labels: Tensor) -> float:
        return 0.0


class OtherKind(Focal):
    """Of a kind that there is not."""

    kind = "ranking"


def test_a_task_of_the_users_own() -> None:
    objective = TaskSettings(_target_=f"{__name__}.Focal").objective()
    assert isinstance(objective, Own)
    outputs, labels = drawn("classification", 701)
    found = measure(Fixed(outputs), torch.arange(701), labels, objective)
    whole = {"accuracy": Focal().accuracy(outputs, labels), "loss": Focal().loss(outputs, labels)}
    assert found == pytest.approx({name: float(value) for name, value in whole.items()}, rel=1e-5)


TASKS = [TaskSettings(name, loss) for name, kind in KINDS.items() for loss in kind.losses]
TASKS += [TaskSettings(_target_=f"{__name__}.{name}") for name in ("Focal", "Similar")]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name} {task.loss} {task._target_}")
def test_the_loss_of_bfloat16_is_that_of_the_same_in_float32(task: TaskSettings) -> None:
    objective = task.objective()
    outputs, labels = drawn("classification" if task._target_ else task.name)
    mixed = outputs.bfloat16()
    with computing(BF16, "cpu"):
        loss = objective.loss(mixed, labels)
    assert torch.equal(loss, objective.loss(mixed.float(), labels))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoLoss", "has no loss; expected a class"),
        ("OtherKind", "kind=ranking: takes classification, multi"),
        ("Nothing", "has no Nothing; expected a class"),
    ],
)
def test_own_tasks_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^task._target_={__name__}.{name}: ") as caught:
        TaskSettings(_target_=f"{__name__}.{name}").objective()
    assert message in str(caught.value)
