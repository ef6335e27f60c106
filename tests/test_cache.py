"""The cache on disk.

Whose folders are trusted, what is believed of what lies there, what goes when it is full.
"""

import logging
import multiprocessing
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from probgen.compile import backend
from probgen.core import cache, private_torch

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(
    os.name != "posix" or os.getuid() != 0, reason="gives files to another user"
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    monkeypatch.delenv(cache.LIMIT, raising=False)
    return tmp_path / "cache"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# -- folders
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PROBGEN_CACHE": "{}/given", "XDG_CACHE_HOME": "{}/xdg"}, "given/kind"),
        ({"PROBGEN_CACHE": "~/given"}, "given/kind"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/probgen/kind"),
        ({"XDG_CACHE_HOME": "relative"}, ".cache/probgen/kind"),
        ({"PROBGEN_CACHE": "", "XDG_CACHE_HOME": ""}, ".cache/probgen/kind"),
    ],
)
def test_the_folder_is_where_the_environment_says_and_private(
    variables, expected, tmp_path, monkeypatch
):
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in {"HOME": "{}", **variables}.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    found = cache.folder("kind")
    assert found == tmp_path.resolve() / expected
    assert mode(found) == mode(found.parent) == 0o700


def open_to_all(place):
    place.mkdir()
    place.chmod(0o777)


def open_to_the_group(place):
    place.mkdir()
    place.chmod(0o770)


def of_another_user(place):
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)


def link(place):
    (place.parent / "elsewhere").mkdir(mode=0o700, exist_ok=True)
    place.symlink_to(place.parent / "elsewhere")


def dangling(place):
    place.symlink_to(place.parent / "nowhere")


UNTRUSTED = [
    *(open_to_all, open_to_the_group, link, dangling, Path.touch, os.mkfifo),
    pytest.param(of_another_user, marks=AS_ROOT),
]


@pytest.mark.parametrize("below", [False, True], ids=["the cache itself", "the folder of a kind"])
@pytest.mark.parametrize("planted", UNTRUSTED)
def test_folders_of_others_links_and_no_folders_are_not_used(planted, below, home, caplog):
    if below:
        home.mkdir(mode=0o700)
    planted(home / "kind" if below else home)
    with caplog.at_level(logging.WARNING, "probgen"):
        found = cache.folder("kind")
    assert (
        not found.is_relative_to(home.resolve().parent)
        and mode(found) == mode(found.parent) == 0o700
    )
    assert "kept for this process only" in caplog.text
    assert cache.folder("kind") == found


@AS_ROOT
def test_a_folder_whose_parent_belongs_to_another_user_is_not_used(tmp_path, monkeypatch):
    of_another_user(tmp_path / "theirs")
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "theirs" / "cache"))
    assert not cache.folder("kind").is_relative_to(tmp_path)


def test_a_folder_that_others_may_read_is_closed_and_no_home_is_no_error(home, monkeypatch):
    (home / "kind").mkdir(parents=True)
    home.chmod(0o755)
    (home / "kind").chmod(0o755)
    assert mode(cache.folder("kind")) == 0o700

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv(cache.FOLDER, "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.Path, "home", homeless)
    assert mode(cache.folder("kind")) == 0o700
    cache.trim()


# -- files
# -----------------------------------------------------------------------------------------------------------

CONTENT = b"machine code"


@pytest.fixture
def sealed():
    file = cache.folder("kind") / "file"
    cache.write_sealed(file, CONTENT)
    assert cache.read_sealed(file) == CONTENT
    return file


def test_files_cut_anywhere_or_with_any_byte_changed_are_not_believed(sealed):
    whole = sealed.read_bytes()
    others = [whole[:end] for end in range(len(whole))] + [
        whole + b"\n",
        whole + b"x",
        b"\n" + whole,
        b"\xff" * 70,
    ]
    others += [
        whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :]
        for i in range(len(whole))
        for bit in range(8)
    ]
    for other in others:
        sealed.write_bytes(other)
        assert cache.read_sealed(sealed) is None


def to_another_user(file):
    file.write_bytes(file.read_bytes())
    os.chown(file, NOBODY, NOBODY)


def to_a_pipe(file):
    file.unlink()
    os.mkfifo(file)


def to_a_link(file):
    file.rename(file.with_suffix(".moved"))
    file.symlink_to(file.with_suffix(".moved"))


def to_a_folder(file):
    file.unlink()
    file.mkdir()


def to_something_huge(file):
    os.truncate(file, 2**42)


CHANGES = [to_a_pipe, to_a_link, to_a_folder, to_something_huge, Path.unlink]
CHANGES += [pytest.param(to_another_user, marks=AS_ROOT)]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_plain_file_of_ones_own_is_not_believed_and_made_anew(change, sealed):
    change(sealed)
    assert cache.read_sealed(sealed) is None
    if change is not to_a_folder:
        cache.write_sealed(sealed, CONTENT)
        assert cache.read_sealed(sealed) == CONTENT and mode(sealed) == 0o600


def test_a_failed_write_leaves_nothing_behind(monkeypatch):
    place = cache.folder("kind")
    (place / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        cache.write(place / "taken", b"content")
    assert [file.name for file in place.iterdir()] == ["taken"]


def _write_often(file, mark):
    for _ in range(100):
        cache.write_sealed(file, mark * 50_000)


def test_processes_that_write_the_same_file_never_mix(sealed):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_write_often, args=(sealed, mark)) for mark in (b"a", b"b", b"c")
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        content = cache.read_sealed(sealed)  # never none, and never of two of them
        assert content == CONTENT or content == content[:1] * 50_000
    assert all(process.exitcode == 0 for process in processes)
    assert [file.name for file in sealed.parent.iterdir()] == ["file"]


def test_a_process_that_has_forked_has_another_temporary_folder():
    folder = cache.temporary("kind")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        other = pool.apply(cache.temporary, ("kind",))
    assert other != folder and folder.exists()


# -- size
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size"),
    [
        *[
            ("", 2 * 2**30),
            ("0", 0),
            ("1000", 1000),
            ("5k", 5 * 2**10),
            ("500M", 500 * 2**20),
            ("3 GB", 3 * 2**30),
        ],
        *[("1.5G", None), ("-1", None), ("much", None), ("G", None), ("1P", None)],
    ],
)
def test_the_limit(given, size, monkeypatch, caplog):
    cache._tell.cache_clear()
    monkeypatch.setenv(cache.LIMIT, given)
    with caplog.at_level(logging.WARNING, "probgen"):
        assert cache.limit() == (2 * 2**30 if size is None else size)
    assert ("expected a size such as 500M" in caplog.text) == (size is None)


def test_what_was_used_last_longest_ago_goes_first(monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "2500")
    place, now = cache.folder("kind"), time.time()
    for age, name in enumerate(["used", "old", "young"]):
        cache.write(place / name, b"x" * 1000)
        os.utime(place / name, (now - 900 + age, now - 900 + age))
    (place / ".part-left").touch()
    os.utime(place / ".part-left", (0, 0))
    assert cache.read(place / "used") is not None
    cache.trim()
    assert {file.name for file in place.iterdir()} == {"used", "young"}
    monkeypatch.setenv(cache.LIMIT, "0")
    cache.trim(place / "young")
    assert {file.name for file in place.iterdir()} == {"young"}


def test_trimming_follows_no_links(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "0")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis").write_text("years of work")
    (cache.folder("kind") / "link").symlink_to(tmp_path / "own")
    cache.trim()
    assert (tmp_path / "own" / "thesis").exists()


# -- machine code
# ----------------------------------------------------------------------------------------------------

GRAPH = make_fx(lambda x: (x.sin() * 2,))(torch.ones(3))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A library and what lies beside it, made once."""
    folder = tmp_path_factory.mktemp("made")
    with backend._quiet():
        options = private_torch.known_options(backend.LIBRARY) | {
            "aot_inductor.output_path": str(folder)
        }
        return Path(
            torch._inductor.aot_compile(backend._plain(GRAPH), (torch.ones(3),), options=options)
        )


@pytest.fixture
def compiler(compiled, monkeypatch, tmp_path):
    """One that takes no time; how often it was called."""
    calls = []

    def copied(graph, inputs, options):
        calls.append(options["aot_inductor.output_path"])
        assert mode(Path(calls[-1])) == 0o700
        made = Path(calls[-1]) / "made.so"
        made.write_bytes(compiled.read_bytes())
        return str(made)

    monkeypatch.setattr(torch._inductor, "aot_compile", copied)
    return calls


def right():
    x = torch.tensor([0.1, 0.2, 0.3])
    (found,) = backend.by_inductor(GRAPH, [x])([x])
    torch.testing.assert_close(found, x.sin() * 2)


def cut_short(file):
    os.truncate(file, file.stat().st_size // 2)


def with_another_byte(file):
    with file.open("r+b") as opened:
        opened.seek(5000)
        opened.write(b"\xcc" * 3)


def with_a_path(file):
    file.write_text("/tmp/planted.so")


def with_no_library(file):
    cache.write_sealed(file, b"20\nwhole, but of no use")


def with_no_size(file):
    cache.write_sealed(file, b"whole, but of no use")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [*CHANGES, cut_short, with_another_byte, with_a_path, with_no_library, with_no_size]
)
def test_damaged_and_planted_libraries_are_made_anew(change, compiler, capfd):
    right()
    right()
    assert len(compiler) == 1
    (file,) = cache.folder(backend.KIND).iterdir()
    change(file)
    right()
    assert len(compiler) == 2
    assert list(cache.temporary(backend.KIND).iterdir()) == []


@pytest.mark.slow
def test_a_library_in_use_outlives_changes_of_its_file(compiler):
    x = torch.tensor([0.1, 0.2, 0.3])
    run = backend.by_inductor(GRAPH, [x])
    (file,) = cache.folder(backend.KIND).iterdir()
    os.truncate(file, 0)
    torch.testing.assert_close(run([x])[0], x.sin() * 2)


@pytest.mark.slow
def test_a_full_disk_is_no_obstacle(compiler, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(cache, "write_sealed", full)
    right()
    right()
    assert len(compiler) == 2


@pytest.mark.slow
def test_operations_without_machine_code_are_found_again(home):
    """Their calls are described in a second file beside the library."""
    graph = make_fx(lambda x: (torch.linalg.cholesky_ex(x @ x.T + torch.eye(3))[0],))(
        torch.ones(3, 3)
    )
    x = torch.rand(3, 3)
    expected = torch.linalg.cholesky(x @ x.T + torch.eye(3))
    for found in (backend.by_inductor(graph, [x]), backend._kept(graph, [x])):
        torch.testing.assert_close(found([x])[0], expected)


@pytest.mark.parametrize("part", ["machine", "_compiler", "threads", "LIBRARY"])
def test_libraries_belong_to_a_machine_a_compiler_and_settings(part, monkeypatch):
    before = backend._key(GRAPH, [torch.ones(3)])
    assert backend._key(GRAPH, [torch.ones(3)]) == before
    if part == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif part == "LIBRARY":
        monkeypatch.setattr(backend, part, {})
    else:
        monkeypatch.setattr(backend, part, lambda: ("another",))
    assert backend._key(GRAPH, [torch.ones(3)]) != before


@pytest.mark.slow
def test_another_process_finds_what_this_one_has_made(compiler):
    """Also after this one has compiled, which leaves traces in torch's settings."""
    right()
    code = "from test_cache import *; print(backend._file(GRAPH, [torch.ones(3)]).exists())"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path]))
    }
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout.split() == ["True"]


def test_what_a_machine_and_a_compiler_are(monkeypatch):
    told = " ".join(backend.machine())
    assert torch.__version__ in told and (
        "flags" in told or "Features" in told or not Path("/proc/cpuinfo").exists()
    )
    before = backend._compiler()
    with torch._inductor.config.patch(backend.LIBRARY):
        pass
    assert backend._compiler() == before
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert backend._compiler() != before and "FileNotFoundError" in backend._compiler()[0]
    with torch._inductor.config.patch({"cpp.enable_unsafe_math_opt_flag": True}):
        assert backend._compiler() != before
    monkeypatch.setenv("CPATH", "/opt/include")
    assert backend._compiler() != before


@pytest.mark.parametrize("before", [None, "torch's", "chosen"])
def test_torchs_own_cache_is_private_too_unless_the_user_has_chosen_it(
    before, home, monkeypatch, tmp_path
):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    value = {"torch's": default_cache_dir(), "chosen": str(tmp_path / "chosen")}.get(before)
    monkeypatch.delenv(backend.TORCHS, raising=False)
    if value:
        monkeypatch.setenv(backend.TORCHS, value)
    with backend._own_folder():
        inside = Path(os.environ[backend.TORCHS])
        assert (
            (inside == Path(value))
            if before == "chosen"
            else (mode(inside) == 0o700 and inside.is_relative_to(home))
        )
    assert os.environ.get(backend.TORCHS) == value
