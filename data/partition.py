"""Division of the training samples among clients, by flwr-datasets' partitioners or by user.

Every scheme first shuffles the samples by seed (flwr-datasets' IidPartitioner cuts contiguous
blocks) and gives each client a list of row numbers; samples are never copied. A client may end up
with one sample or none.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from targets import is_target, locate, shown

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

SCHEMES = ("iid", "dirichlet", "shards", "natural")
# What a partitioner of the user's own is given, as far as its signature names it.
GIVEN = ("labels", "num_clients", "seed", "users", "alpha", "samples_per_client")
QUANTILES = 10  # of a real number, in place of classes
SHARDS_PER_CLIENT = 2  # McMahan et al. 2017, arXiv 1602.05629, section 3


def partition(
    labels: NDArray[Any],
    scheme: str,
    num_clients: int,
    seed: int,
    alpha: float = 0.5,
    samples_per_client: int | None = None,
    users: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """Return the row numbers of each client's samples, one array per client.

    Args:
        labels: (N,) class of each training sample; of other tasks (N, …), see `classes_of`.
        scheme: ``iid``; ``dirichlet``, each class divided by Dirichlet(alpha) proportions (Hsu et
            al. 2019, arXiv 1909.06335); ``shards``, samples sorted by class, cut into two shards
            per client (McMahan et al. 2017); what does not fill a shard is unused; ``natural``,
            each client has one or more whole users, see `deal_users`; or a function of the user's
            own, see `own_partition`.
        num_clients: how many clients share the samples.
        seed: the same seed gives the same division.
        alpha: concentration for ``dirichlet``; small is unequal.
        samples_per_client: at most this many samples for each client; the rest are unused.
        users: (N,) whose each training sample is; None where the data have none.

    Raises:
        ValueError: the data cannot be divided so; names the key.
    """
    check_scheme(scheme)
    if num_clients < 1:
        raise ValueError(f"clients.total={num_clients}: takes 1 or more")
    if not 0 < alpha < np.inf:
        raise ValueError(f"data.alpha={alpha}: takes a finite number above 0")
    if samples_per_client is not None and samples_per_client < 1:
        raise ValueError(f"data.samples_per_client={samples_per_client}: takes 1 or more")
    if scheme not in SCHEMES:
        function = own_partition(scheme)
        given = (labels, num_clients, seed, users, alpha, samples_per_client)
        names = inspect.signature(function).parameters
        taken = {name: value for name, value in zip(GIVEN, given, strict=True) if name in names}
        parts = checked(
            function(**taken), len(labels), num_clients, f"data.partition={shown(scheme)}"
        )
        return [part[:samples_per_client] for part in parts]
    order = np.random.default_rng(seed).permutation(len(labels))
    if scheme in ("dirichlet", "shards"):
        labels = classes_of(labels, scheme)
    elif labels.ndim > 1:
        labels = np.zeros(len(labels), dtype=np.int64)  # not looked at
    if scheme == "natural":
        if users is None:
            raise ValueError(
                "data.partition=natural: these data have no users; data=mitbih has patients, "
                "data=arrays has users with train_user, data=hub with data.options.user"
            )
        dealt = deal_users(np.unique(users), num_clients, seed)
        return [order[np.isin(users[order], own)][:samples_per_client] for own in dealt]
    if samples_per_client is not None and scheme == "iid":
        needed = samples_per_client * num_clients
        if needed > len(labels):
            raise ValueError(
                f"data.samples_per_client={samples_per_client}: {num_clients} clients need "
                f"{needed} samples, the data have {len(labels)}"
            )
        order = order[:needed]
    needed = {"iid": 0, "dirichlet": num_clients, "shards": SHARDS_PER_CLIENT * num_clients}[scheme]
    if len(order) < needed:
        raise ValueError(
            f"data.partition={scheme}: {num_clients} clients need at least {needed} samples, "
            f"the data have {len(order)}"
        )
    if scheme == "shards":  # ties stay in shuffled order
        order = order[np.argsort(labels[order], kind="stable")]
    # IidPartitioner cannot make more blocks than there are rows; the clients past them get none.
    num_blocks = min(num_clients, len(order)) if scheme == "iid" else num_clients
    parts = _apply(_partitioner(scheme, num_blocks, seed, alpha), order, labels[order])
    parts += [np.empty(0, dtype=np.int64)] * (num_clients - num_blocks)
    return [part[:samples_per_client] for part in parts]


def classes_of(labels: NDArray[Any], scheme: str) -> NDArray[np.int64]:
    """Return (N,) classes to divide by; of one real number a sample its decile.

    Args:
        labels: (N,) classes, (N, K) labels or real numbers, (N, T) tokens.
        scheme: for the message.

    Raises:
        ValueError: samples of this task have no class; names data.partition.
    """
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return labels
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind == "f":
        values = labels[:, 0]
        inner = np.quantile(values, np.arange(1, QUANTILES) / QUANTILES)
        return np.searchsorted(inner, values, side="right").astype(np.int64)
    raise ValueError(
        f"data.partition={scheme}: divides by class, and these samples have {labels.shape[1]} "
        "labels each; takes task=classification, or task=regression of one number, by its decile; "
        "iid and natural divide any data"
    )


def check_scheme(scheme: str) -> None:
    """Refuse what is neither a scheme of ours nor a function that can divide samples.

    Raises:
        ValueError: names data.partition.
    """
    if scheme not in SCHEMES:
        own_partition(scheme)


def own_partition(scheme: str) -> Callable[..., Sequence[Any]]:
    """The partitioner ``my_pkg.my_partition`` or ``parts/mine.py:my_partition``.

    A function of any of `GIVEN`, by name: (N,) int64 ``labels``, ``num_clients``, ``seed``, (N,)
    int64 ``users`` or None, ``alpha`` and ``samples_per_client``. It returns, for each client, the
    row numbers of its samples.

    Raises:
        ValueError: names data.partition.
    """
    expected = f"{', '.join(SCHEMES)}, or a function of your own (docs/EXTEND.md)"
    if not is_target(scheme):
        raise ValueError(f"data.partition={scheme}: takes {expected}")
    function = locate(scheme, "data.partition", expected)
    if not inspect.isroutine(function):
        raise ValueError(f"data.partition={shown(scheme)}: is not a function; expected {expected}")
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in GIVEN and parameter.default is parameter.empty:
            raise ValueError(
                f"data.partition={shown(scheme)}: its parameter {name} is not given; "
                f"a partitioner takes any of {', '.join(GIVEN)}"
            )
    return function


def checked(
    parts: Sequence[Any], num_samples: int, num_clients: int, key: str
) -> list[NDArray[np.int64]]:
    """What a partitioner of the user's own returned, as int64 arrays.

    Raises:
        ValueError: a part is missing, or a row is no sample's, or is given twice; names ``key``.
    """
    if not isinstance(parts, Sequence) or len(parts) != num_clients:
        got = f"{len(parts)} parts" if isinstance(parts, Sequence) else type(parts).__name__
        raise ValueError(f"{key}: returns {got}; expected a list of clients.total={num_clients}")
    rows = [np.asarray(part).reshape(-1) for part in parts]
    for client, part in enumerate(rows):
        if len(part) and not np.issubdtype(part.dtype, np.integer):
            raise ValueError(f"{key}: client {client} gets {part.dtype}; expected row numbers")
        if len(part) and not 0 <= part.min() <= part.max() < num_samples:
            beyond = part[(part < 0) | (part >= num_samples)][0]
            raise ValueError(
                f"{key}: client {client} gets row {beyond}; expected 0 to {num_samples - 1}"
            )
    rows = [part.astype(np.int64) for part in rows]
    values, counts = np.unique(np.concatenate(rows), return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{key}: row {values[counts > 1][0]} is given more than once")
    return rows


def deal_users(users: NDArray[np.int64], num_clients: int, seed: int) -> list[NDArray[np.int64]]:
    """Deal whole users to clients: all of them, and their numbers differ by one at most.

    Where there are as many clients as users, client i is user i in ascending order. Fewer clients
    get several users each, drawn by ``seed``.

    Args:
        users: (U,) distinct users.
        num_clients: 1 to U.
        seed: draws who goes together.

    Raises:
        ValueError: there are more clients than users.
    """
    if num_clients > len(users):
        raise ValueError(
            f"clients.total={num_clients}: data.partition=natural divides {len(users)} users and "
            f"gives each client at least one; takes 1 to {len(users)}"
        )
    if num_clients < len(users):
        users = np.random.default_rng(seed).permutation(users)
    return np.array_split(users, num_clients)


def _partitioner(scheme: str, num_clients: int, seed: int, alpha: float) -> "Partitioner":
    # Imported here: flwr_datasets takes a second to import, and a cached division needs none of it.
    from flwr_datasets import partitioner as flwr

    makers: dict[str, Callable[[], Any]] = {
        "iid": lambda: flwr.IidPartitioner(num_clients),
        "dirichlet": lambda: flwr.DirichletPartitioner(
            num_clients, "label", alpha, min_partition_size=0, seed=seed % 2**32
        ),
        "shards": lambda: flwr.ShardPartitioner(
            num_clients, "label", SHARDS_PER_CLIENT, seed=seed % 2**32
        ),
    }
    return makers[scheme]()


def _apply(
    partitioner: "Partitioner", rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Run a partitioner over ``rows`` and return the rows of each partition."""
    import datasets

    class Table(datasets.Dataset):  # type: ignore[misc]
        """What partitioners ask of data, from arrays; `datasets` takes milliseconds for each."""

        columns: Mapping[str, NDArray[Any]]

        @property
        def num_rows(self) -> int:
            return len(self.columns["row"])

        def __len__(self) -> int:
            return self.num_rows

        def __getitem__(self, name: str) -> NDArray[Any]:
            return self.columns[name]

        def unique(self, name: str) -> list[Any]:
            return list(np.unique(self.columns[name]))

        def sort(self, name: str) -> "Table":
            return self.select(np.argsort(self.columns[name], kind="stable"))

        def select(self, indices: "Sequence[int] | NDArray[np.int64]", **_: Any) -> "Table":
            chosen = np.asarray(indices, dtype=np.int64)
            made = copy.copy(self)
            made.columns = {name: column[chosen] for name, column in self.columns.items()}
            return made

    table = Table.from_dict({"row": [], "label": []})
    table.columns = {"row": rows, "label": labels}
    partitioner.dataset = table
    return [partitioner.load_partition(i)["row"] for i in range(partitioner.num_partitions)]
