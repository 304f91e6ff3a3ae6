"""Help, completion, how much is said, and the list of recipes."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dim.commands.cli import COMMANDS, main
from dim.commands.helping import EXAMPLES
from dim.commands.parsing import parse
from dim.config import TrainConfig
from dim.io import read_document
from dim.recipes.load import load_recipe, recipe_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_short_and_ends_with_examples_that_are_taken(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text, examples = capsys.readouterr().out.split("\nExamples:\n")
    if command in ("train", "sample", "experts", "distill", "evaluate", "compare"):
        assert f"More options, shown by dim {command} --help-all:" in text
        assert "--protocol.epochs" not in text
        assert "--experts.count" not in text
    assert len(text.splitlines()) < 110
    lines = [line.strip() for line in examples.splitlines()]
    assert lines == list(EXAMPLES[command])
    for line in lines:
        program, name, *arguments = shlex.split(line.partition(" >")[0])
        assert (program, name) == ("dim", command)
        if "--resume" in arguments:
            continue
        if "--recipe" in arguments:
            assert main([name, *arguments, *([] if "--dry-run" in arguments else ["--dry-run"])]) == 0
        else:
            parse(COMMANDS[name][1], arguments, name)


def test_help_shows_the_sections_whose_options_are_given(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--generator.name", "diffusion", "--help"])
    text = capsys.readouterr().out
    assert "--generator.width" in text
    assert "diffusion" in text
    assert "--pool.members" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_options_and_recipes(shell, tmp_path):
    """The script of bash is tried where there is one; those of the other shells at least name everything."""
    script = subprocess.run([sys.executable, "-m", "dim.commands.cli", "completion", shell], capture_output=True, text=True)
    assert (script.returncode, script.stderr) == (0, "")
    for word in (*COMMANDS, "--generator.width", "digits-dim"):
        assert word in script.stdout
    if shell != "bash" or shutil.which("bash") is None:
        return
    (tmp_path / "dim.bash").write_text(script.stdout)

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        ask = f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _tyro_dim; printf "%s\\n" "${{COMPREPLY[@]}}"'
        source = f"source {shlex.quote(str(tmp_path / 'dim.bash'))}; {ask}"
        path = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(["bash", "-c", source], capture_output=True, text=True, env=path).stdout.split()

    assert set(completed("dim", "comp")) >= {"compare", "completion"}
    assert "--stage-one.epochs" in completed("dim", "train", "--stage-one.e")
    assert "digits-dim" in completed("dim", "train", "--recipe", "digits")


@pytest.mark.parametrize(("words", "notes"), [([], True), (["-q"], False), (["--quiet"], False)])
def test_quiet_leaves_out_notes_and_progress_but_no_result(words, notes, tmp_path, capsys):
    run = ["train", "--recipe", "digits-dim", "--stage-one.epochs", "0.1", "--stage-two.epochs", "0", "--generator.width", "4"]
    assert main([*words, *run, "--discriminator.width", "4", "--out", str(tmp_path / "run")]) == 0
    output, errors = capsys.readouterr()
    assert ("data: digits" in output) == notes
    assert bool(errors) <= notes
    assert "generator: " in output
    assert main([*words, "sample", str(tmp_path / "nothing"), "--ipc", "1", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_verbose_says_where_an_error_arose(tmp_path, capsys):
    assert main(["-v", "report", str(tmp_path / "nothing")]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("dim: ")
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "Traceback" not in capsys.readouterr().err  # it holds for one command


def test_recipes_are_listed_with_their_commands_and_whether_they_were_measured(capsys, tmp_path):
    assert main(["recipes", "--json", str(tmp_path / "recipes.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.lstrip(" *").split()[0] for line in lines if line.startswith("  ")]
    assert sorted(names) == recipe_names()
    assert lines[0] == "For dim train:"
    assert [line for line in lines if "* digits-dim " in line]
    rows = read_document(tmp_path / "recipes.json")["recipes"]
    assert [row["name"] for row in rows] == recipe_names()
    for row in rows:
        assert (row["command"] == "train") == isinstance(load_recipe(row["name"]), TrainConfig)
        assert row["measured"] == "" or (ROOT / row["measured"]).exists()
        assert row["measured"] or "Not run" in row["expect"] or "could not" in row["expect"] or "Not run yet" in row["expect"]
