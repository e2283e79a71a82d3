"""Random numbers and the environment around a client: its own, and put back."""

import os
import random

import numpy as np

from app import isolation


def drawn() -> tuple[float, float]:
    return random.random(), float(np.random.standard_normal())


def test_a_client_draws_from_its_seed_whoever_was_before() -> None:
    found = []
    for draws in (0, 1, 2, 3):  # an odd number of normals leaves one for the next call
        with isolation.isolated(5):
            for _ in range(draws):
                drawn()
        with isolation.isolated(7):
            found.append([drawn() for _ in range(3)])
    assert all(one == found[0] for one in found)
    np.random.seed(7)
    assert found[0][0][1] == np.random.standard_normal()


def test_the_process_goes_on_where_it_was() -> None:
    runs = []
    for has_client in (False, True):
        random.seed(1)
        np.random.seed(1)
        before = [drawn() for _ in range(3)]  # three normals: a fourth is held back
        isolation.drop_held_back()  # as a round begins
        if has_client:
            with isolation.isolated(5):
                drawn()
        runs.append((before, [drawn() for _ in range(5)]))
    assert runs[0] == runs[1]


def test_the_environment_is_put_back(monkeypatch) -> None:
    monkeypatch.setenv("KEPT", "ä=1")
    before = dict(os.environ)
    with isolation.isolated(5):
        os.environ["KEPT"] = "2"
        os.environ["NEW"] = "3"
        del os.environ["PATH"]
    assert dict(os.environ) == before
    assert os.getenv("KEPT") == "ä=1"
