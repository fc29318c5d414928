"""python -m analysis.page: one file, whole or not at all, and nobody else's file replaced."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import checkpoint, dynamics, page, similarity, spectrum, store
from analysis.base import landing
from analysis.pages import document
from analysis.pages.data import decoded

MODULES = ("layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj")


@pytest.fixture
def adapters(write_adapter, lora_tensors):
    return [write_adapter(lora_tensors(*MODULES), name) for name in ("one", "two")]


def test_a_page_of_two_adapters(adapters, tmp_path, run_main):
    out = tmp_path / "p.html"
    status, stdout, stderr = run_main(page.main, *adapters, "--out", out)
    assert (status, stderr) == (0, [])
    assert re.fullmatch(rf"{re.escape(str(out))}: 0\.\d MB; open it in a browser\n", stdout)
    text = out.read_text()
    assert document.is_page(text[: store.START].encode())
    assert "one and two" in text
    assert text.count('"name":"layers.1.q_proj"') == 1
    assert '"phi":null' not in text


def test_the_same_input_gives_the_same_bytes(adapters, tmp_path, run_main):
    for name in ("a.html", "b.html"):
        run_main(page.main, *adapters, "--out", tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.fixture
def base(tmp_path, rng):
    """A model with the weights that `adapters` change, but for one."""
    weights = {
        f"{module}.weight": rng.standard_normal((12, 10)).astype("f4") for module in MODULES[:2]
    }
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text("{}")
    return tmp_path / "base"


def test_beside_the_base(adapters, base, tmp_path, run_main):
    arguments = (*adapters, "--base", base, "--out", tmp_path / "p.html")
    status, _, stderr = run_main(page.main, *arguments)
    assert status == 1
    assert len(stderr) == 2
    assert "layers.1.q_proj" in stderr[0]
    text = (tmp_path / "p.html").read_text()
    assert "Not compared with the base: " in text
    assert '"column":"relative_frobenius"' in text
    status, _, stderr = run_main(page.main, *arguments, "--modules", r"layers\.0")
    assert (status, stderr) == (0, [])
    found = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "p.html").read_text())[1])
    shares = decoded(found["landing"]["left"]).reshape(2, 2, 10)
    (row, *_) = landing.analyse(checkpoint.runs(adapters[:1]), base).rows
    np.testing.assert_array_equal(
        shares[0, 0], np.float32([row[f"left_{decile}"] for decile in range(1, 11)])
    )


def test_without_phi_and_with_one_adapter(adapters, tmp_path, run_main):
    for arguments in ((*adapters, "--no-phi"), adapters[:1]):
        assert run_main(page.main, *arguments, "--out", tmp_path / "p.html")[0] == 0
        assert '"phi":null' in (tmp_path / "p.html").read_text()


def test_steps_of_a_run(write_adapter, lora_tensors, tmp_path, run_main):
    for step in (5, 10):
        write_adapter(lora_tensors(*MODULES), f"run/checkpoint-{step}")
    assert run_main(page.main, tmp_path / "run", "--out", tmp_path / "p.html")[0] == 0
    assert '"name":"run@10","run":"run","step":10' in (tmp_path / "p.html").read_text()


def test_an_unreadable_checkpoint_is_an_error_and_no_page(adapters, tmp_path, run_main):
    (adapters[1] / "adapter_model.safetensors").write_bytes(b"not tensors")
    out = tmp_path / "p.html"
    status, stdout, stderr = run_main(page.main, *adapters, "--out", out)
    assert (status, stdout) == (2, "")
    assert "adapter_model.safetensors" in stderr[0]
    assert stderr[-1].endswith("two: no update to show; no page is written without it")
    assert not out.exists()


def test_a_skipped_module_is_named_in_the_page(write_adapter, lora_tensors, tmp_path, run_main):
    tensors = lora_tensors(*MODULES)
    name = "base_model.model.layers.1.q_proj.lora_A.weight"
    tensors[name] = np.full_like(tensors[name], np.nan)
    status, _, stderr = run_main(page.main, write_adapter(tensors), "--out", tmp_path / "p.html")
    assert status == 1
    assert "layers.1.q_proj" in stderr[0]
    assert "Not analysed: " in (tmp_path / "p.html").read_text()


def test_updates_of_zero(write_adapter, lora_tensors, tmp_path, run_main):
    tensors = {k: (0 * t if "lora_B" in k else t) for k, t in lora_tensors(*MODULES).items()}
    assert run_main(page.main, write_adapter(tensors), "--out", tmp_path / "p.html")[0] == 0
    text = (tmp_path / "p.html").read_text()
    assert "adapter: 3 modules, all with ΔW = 0." in text
    assert "adapter: ΔW = 0 in every module." in text


def test_only_a_page_of_this_tool_is_replaced(adapters, tmp_path, run_main):
    out = tmp_path / "p.html"
    out.write_text("<!DOCTYPE html><title>mine</title>")
    status, _, stderr = run_main(page.main, *adapters, "--out", out)
    assert status == 2
    assert "exists and was not made by this tool" in stderr[0]
    assert "--force" in stderr[0]
    assert "mine" in out.read_text()
    assert run_main(page.main, *adapters, "--out", out, "--force")[0] == 0
    before = out.read_bytes()
    assert run_main(page.main, adapters[0], "--out", out)[0] == 0
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("out", "words"), [(".", "is a directory"), ("missing/p.html", "there is no directory")]
)
def test_a_place_where_no_page_can_be(adapters, tmp_path, run_main, out, words):
    status, _, stderr = run_main(page.main, *adapters, "--out", tmp_path / out, "--force")
    assert status == 2
    assert words in stderr[0]


def test_what_fails_midway_leaves_the_old_page(adapters, tmp_path, run_main, monkeypatch):
    out = tmp_path / "p.html"
    run_main(page.main, *adapters, "--out", out)
    before = out.read_bytes()

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr("analysis.pages.text.page", fails)
    status, _, stderr = run_main(page.main, *adapters, "--out", out)
    assert (status, stderr) == (2, ["analysis.page: no space left"])
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*p.html*")] == ["p.html"]


def test_results_on_disk(adapters, tmp_path, run_main):
    results, out = tmp_path / "results", tmp_path / "p.html"
    run_main(spectrum.main, *adapters, "--out", results)
    assert run_main(page.main, "--results", results, "--out", out)[0] == 0
    of_results = out.read_bytes()
    assert run_main(page.main, *adapters, "--no-phi", "--out", out)[0] == 0
    assert out.read_bytes() == of_results
    status, _, stderr = run_main(page.main, "--results", adapters[0], "--out", out)
    assert status == 2
    assert "not the results of an analysis" in stderr[0]
    status, _, stderr = run_main(page.main, "--results", results, "--modules", "none", "--out", out)
    assert status == 2
    with pytest.raises(SystemExit, match="2"):
        page.main([str(adapters[0]), "--results", str(results)])


def test_the_page_of_analysis_spectrum(adapters, tmp_path, run_main):
    out = tmp_path / "p.html"
    status, stdout, stderr = run_main(spectrum.main, *adapters, "--page", out)
    assert (status, stderr) == (0, [])
    assert stdout
    of_spectrum = out.read_bytes()
    run_main(page.main, *adapters, "--no-phi", "--out", out)
    assert out.read_bytes() == of_spectrum


def test_the_page_of_analysis_similarity(adapters, base, tmp_path, run_main):
    """With φ and the base it is the page of analysis.page."""
    out = tmp_path / "p.html"
    for more in ((), ("--base", base, "--modules", r"layers\.0")):
        status, stdout, stderr = run_main(similarity.main, *adapters, *more, "--page", out)
        assert (status, stderr) == (0, [])
        assert stdout
        of_similarity = out.read_bytes()
        run_main(page.main, *adapters, *more, "--out", out)
        assert out.read_bytes() == of_similarity


def test_the_page_of_two_runs_holds_the_same_from_each_command(
    write_adapter, lora_tensors, tmp_path, run_main
):
    """Of all pairs of steps analysis.similarity compares more than a page shows."""
    for run in ("a", "b"):
        for step in (5, 10, 15):
            write_adapter(lora_tensors(*MODULES), f"{run}/checkpoint-{step}")
    runs = [tmp_path / run for run in ("a", "b")]
    pages = {}
    for command, option in ((page, "--out"), (dynamics, "--page"), (similarity, "--page")):
        assert run_main(command.main, *runs, option, tmp_path / "p.html")[::2] == (0, [])
        pages[command] = (tmp_path / "p.html").read_text()
    found = json.loads(re.search(r'id="data">(.*?)</script>', pages[page])[1])
    assert found["phi"]["of"] == len(found["phi"]["pairs"]) == 7
    assert pages[dynamics] == pages[similarity] == pages[page]


def test_modules_are_shown_by_the_names_that_map_gives_them(
    write_adapter, lora_tensors, tmp_path, run_main
):
    paths = [
        write_adapter(lora_tensors("layers.0.q_proj", "layers.0.v_proj"), "one"),
        write_adapter(lora_tensors("h.0.q", "layers.0.v_proj"), "two"),
    ]
    out = tmp_path / "p.html"
    arguments = (*paths, "--map", r"^h\.(\d+)\.q", r"layers.\1.q_proj", "--page", out)
    assert run_main(similarity.main, *arguments, "--modules", "q_proj")[0] == 0
    text = out.read_text()
    assert text.count('"name":"layers.0.q_proj"') == 1
    assert "h.0.q" not in text
    assert "v_proj" not in text
    status, _, stderr = run_main(similarity.main, *paths, "--map", "^.*", "same", "--page", out)
    assert status == 1
    assert any("appears twice" in line for line in stderr)
    assert out.read_text().count('"name":"same"') == 1


@pytest.mark.parametrize("command", [spectrum, similarity, dynamics])
def test_no_command_writes_a_page_that_lacks_a_checkpoint(
    command, write_adapter, lora_tensors, tmp_path, run_main
):
    paths = [write_adapter(lora_tensors(*MODULES), f"run/checkpoint-{n}") for n in (1, 2, 3)]
    (paths[1] / "adapter_model.safetensors").write_bytes(b"not tensors")
    out = tmp_path / "p.html"
    status, stdout, stderr = run_main(command.main, *paths, "--page", out)
    assert status == 1
    assert stdout
    assert any("no page is written without it" in line for line in stderr)
    assert not out.exists()


@pytest.mark.parametrize("command", [spectrum, similarity, dynamics])
def test_every_command_replaces_only_a_page_of_this_tool(
    command, write_adapter, lora_tensors, tmp_path, run_main
):
    paths = [write_adapter(lora_tensors(*MODULES), f"run/checkpoint-{n}") for n in (1, 2)]
    out = tmp_path / "p.html"
    out.write_text("mine")
    status, stdout, stderr = run_main(command.main, *paths, "--page", out)
    assert (status, stdout) == (2, "")
    assert "--page" in stderr[0]
    assert "--force" in stderr[0]
    assert out.read_text() == "mine"
    assert run_main(command.main, *paths, "--page", out, "--force")[::2] == (0, [])
    assert document.is_page(out.read_bytes()[: store.START])
    assert run_main(command.main, *paths, "--page", out)[::2] == (0, [])


def test_a_checkpoint_without_an_update_is_no_success(adapters, tmp_path, run_main):
    save_file({"x": np.ones(2)}, adapters[1] / "adapter_model.safetensors")
    out = tmp_path / "p.html"
    assert run_main(spectrum.main, *adapters, "--page", out)[0] == 1
    assert not out.exists()


def test_a_page_shows_no_merge(adapters, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        similarity.main(["--merge", *map(str, adapters), "--page", str(tmp_path / "p.html")])


def test_a_broken_link_is_not_replaced(adapters, tmp_path, run_main):
    out = tmp_path / "p.html"
    out.symlink_to(tmp_path / "nowhere")
    assert run_main(page.main, adapters[0], "--out", out)[0] == 2
    assert out.is_symlink()


def test_no_checkpoint_and_bad_usage(tmp_path, run_main):
    status, _, stderr = run_main(page.main, tmp_path / "missing", "--out", tmp_path / "p.html")
    assert status == 2
    assert "missing" in stderr[0]
    with pytest.raises(SystemExit, match="2"):
        page.main([])


def test_the_other_commands_do_not_load_the_page():
    code = "import sys, analysis.dynamics; print([m for m in sys.modules if 'page' in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "analysis" not in loaded.stdout
    assert loaded.returncode == 0


def test_the_example_is_a_page_of_today():
    """If it is not, `make page` makes it again."""
    example = Path(__file__).resolve().parents[2] / "docs" / "example-page.html"
    content = example.read_bytes()
    assert document.is_page(content[: store.START])
    assert len(content) < 3e6
    for text in (document._own(), document._static("page.css")):
        assert text.encode() in content
