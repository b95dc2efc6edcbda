"""A variable of the environment for a while."""

from __future__ import annotations

import os

import pytest

from infercam.engine.common.environment import environment

NAME = "INFERCAM_TEST_VARIABLE"


@pytest.mark.parametrize("before", [None, "", "there"])
def test_what_was_there_comes_back(monkeypatch, before):
    if before is None:
        monkeypatch.delenv(NAME, raising=False)
    else:
        monkeypatch.setenv(NAME, before)
    with pytest.raises(KeyError), environment(NAME, "for a while"):
        assert os.environ[NAME] == "for a while"
        raise KeyError
    assert os.environ.get(NAME) == before
