"""A command line that cannot be read is one line, which says what was meant, and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infercam.engine import cli


@pytest.fixture
def infercam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["/some/where/infercam", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("eval maps --labels x", "infercam eval: no option --labels; it is one of `infercam run`, "),
        (
            "run b -o x --gt m",
            "infercam run: no option --gt; it is one of `infercam eval`, `infercam report`, ",
        ),
        ("report maps --labels l", "infercam report: no option --labels; it is one of `infercam run`, "),
        (
            "run b -o x --queue 3",
            "it is one of `infercam serve`, `infercam package triton`; see `infercam run",
        ),
        (
            "package triton b --nothing",
            "infercam package triton: no option --nothing; see `infercam package tri",
        ),
        (
            "run b --lables l",
            "infercam run: no option --lables; did you mean '--labels'? See `infercam run --help`",
        ),
        ("run b --max_pixels 9", "did you mean '--max-pixels'?"),
        ("eval m --GT x", "did you mean '--gt'?"),
        ("run b -q", "infercam run: no option -q; see `infercam run --help`"),
        ("--vers", "infercam: no option --vers; did you mean '--version'? See `infercam --help`"),
        ("evl", "infercam: no such command 'evl'. Did you mean 'eval'? See `infercam --help`"),
        ("run", "infercam run: missing argument 'bundle'; see"),
        ("run b", "infercam run: missing option '-o'"),
        ("run b -o x --threads no", "infercam run: invalid value for '--threads'"),
        ("run b c -o x", "unexpected extra argument"),
        ("demo --images 0", "infercam demo: invalid value for '--images'"),
    ],
)
def test_what_cannot_be_read_is_one_line(infercam, line: str, says: str) -> None:
    code, out, err = infercam(*line.split())
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert says.casefold() in err.casefold() and "--help`" in err, err


def test_a_name_that_no_terminal_should_see(infercam) -> None:
    code, _, err = infercam("run", "b", "--\x1b[31m\nred")
    assert code == 2 and "\x1b" not in err and err.count("\n") == 1


@pytest.mark.parametrize("line", ["", "package"])
def test_without_a_command_the_help_is_shown(infercam, line: str) -> None:
    code, out, err = infercam(*line.split())
    assert code == 2 and "Usage:" in out + err and "error:" not in err


def test_help_and_version_are_no_errors(infercam) -> None:
    assert infercam("--version")[0] == 0
    code, out, err = infercam("eval", "--help")
    assert code == 0 and "--gt" in out and err == ""


def test_errors_and_exit_codes_of_commands_stay(infercam, tmp_path: Path, monkeypatch) -> None:
    code, _, err = infercam("eval", str(tmp_path))
    assert code == 1 and err.startswith("error: name the ground truth") and err.count("\n") == 1
    from infercam.engine.commands import doctor

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "_show", interrupted)
    assert infercam("doctor")[0] == 130


ROOMS_READ = """
import subprocess
import sys
from infercam.engine.cli import main
sys.argv = ["infercam", *sys.argv[1:]]
try:
    main()
finally:
    print("rooms:", sorted({m.split(".")[1] for m in sys.modules if m.startswith("infercam.")}))
"""


@pytest.mark.parametrize(
    ("line", "rooms"), [("run --help", ["engine"]), ("labels --help", ["engine", "export", "trainer"])]
)
def test_a_command_of_the_engine_reads_no_other_room(line: str, rooms: list[str]) -> None:
    """They are a fifth of what starting takes."""
    done = subprocess.run([sys.executable, "-c", ROOMS_READ, *line.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = done.stdout.splitlines()[-1]
    assert all(room in read for room in rooms) and ("trainer" in read) == ("trainer" in rooms), read
