"""What every test starts from."""

import gc
import os
import signal
from collections import defaultdict

import pyro
import pytest
import torch

# the tensors of tests are small: on a busy machine a second thread costs several times what it
# saves
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for tutorials and workers
torch.set_num_threads(1)
# what runs in the background of a shell ignores Ctrl-C, and so would all that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same seed and leaves Pyro's global parameter store as it found it.

    Empty.
    """
    pyro.set_rng_seed(0)
    yield
    used = list(pyro.get_param_store())
    pyro.clear_param_store()
    assert not used, (
        f"the global parameter store was used: {used}; a test that runs plain Pyro clears it"
    )


@pytest.fixture
def replayed(monkeypatch):
    """Graphs run operation by operation instead of being compiled.

    The same mathematics, recorded in the same way, without the C++ compiler: it takes some twenty
    seconds for the step of a model. Tests that are about its work do without this fixture.
    """
    monkeypatch.setattr(
        "probgen.compile.tracing.Compiled.build", lambda self, *examples, **how: self
    )
    monkeypatch.setattr(
        "probgen.compile.tracing.Compiled.lower", lambda self, *examples, **how: False
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Imports and a long list of tests are no garbage: looking for some takes a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a table the quick half has as many cases as its mark says: the others are slow.

    Tutorials come first: they take a minute each, and the last of them would keep one worker alone.
    """
    items.sort(key=lambda item: item.path.name != "test_tutorials.py")
    tables = defaultdict(list)
    for item in items:
        if item.get_closest_marker("table") is not None:
            tables[item.path, item.originalname].append(item)
    for cases in tables.values():
        quick = cases[0].get_closest_marker("table").kwargs["quick"]
        # steps of the golden ratio: equal ones would meet one column of a two-way table only
        kept = {int(i * 0.618034 % 1 * len(cases)) for i in range(quick)}
        for i, case in enumerate(cases):
            if i not in kept:
                case.add_marker(pytest.mark.slow)


def required(report):
    """Where everything is installed, a library that cannot be imported is a failure."""
    missing = report.skipped and "could not import" in str(report.longrepr)
    if missing and "PROBGEN_REQUIRE_ALL" in os.environ:
        report.outcome = "failed"
        report.longrepr = str(report.longrepr[-1])
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return required((yield))
