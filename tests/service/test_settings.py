"""Where settings come from, which are refused and how that is said, and what is never shown."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("pydantic_settings", reason="needs the extra serve")

from moonshelf.errors import UserError
from moonshelf.service.settings import PREFIX, Settings, is_loopback, load_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "moonshelf.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(config: Path | None = None, **flags: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_settings("shop", config, **flags)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_flags_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml_file(
        tmp_path, "port: 1001\nmax_items: 11\nlog_level: debug\nremote_hosts: [a.example, '*.b.example']\n"
    )
    monkeypatch.setenv("MOONSHELF_PORT", "1002")
    monkeypatch.setenv("MOONSHELF_MAX_ITEMS", "12")
    monkeypatch.setenv("MOONSHELF_DEADLINE_S", "")  # as good as not set
    got = load_settings("shop", config, port=1003, host=None)
    assert (got.port, got.max_items, got.log_level) == (1003, 12, "debug")
    assert (got.host, got.deadline_s, got.folder) == ("127.0.0.1", 30.0, Path("shop"))
    assert got.remote_hosts == ("a.example", "*.b.example")


def test_the_file_may_be_named_by_a_variable_and_name_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONSHELF_CONFIG", str(yaml_file(tmp_path, "folder: shop\nport: 1001\n")))
    assert (load_settings().folder, load_settings().port) == (Path("shop"), 1001)
    monkeypatch.delenv("MOONSHELF_CONFIG")
    with pytest.raises(UserError, match=r"folder is missing.*MOONSHELF_FOLDER"):
        load_settings()


@pytest.mark.parametrize("given", ["a.example, b.example", '["a.example", "b.example"]'])
def test_a_list_in_the_environment(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONSHELF_REMOTE_HOSTS", given)
    assert load_settings("shop").remote_hosts == ("a.example", "b.example")


def test_a_misspelt_name_in_the_file_is_an_error_that_lists_what_there_is(tmp_path: Path) -> None:
    message = refused(yaml_file(tmp_path, "batch_tokns: 5\n"))
    assert "'batch_tokns' (did you mean batch_tokens?)" in message
    assert all(name in message for name in Settings.model_fields)


def test_a_misspelt_flag_or_variable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert "did you mean port?" in refused(prt=5)
    monkeypatch.setenv("MOONSHELF_KEY_FILE", "keys.json")
    monkeypatch.setenv("MOONSHELF_ENDPOINT_KEY", "that of another command")
    with caplog.at_level(logging.WARNING):
        load_settings("shop")
    assert [r.getMessage() for r in caplog.records] == [
        "the variable MOONSHELF_KEY_FILE is no setting (did you mean MOONSHELF_KEYS_FILE?) and is not used"
    ]


def test_an_error_says_which_value_of_which_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(port=70_000).startswith("--port cannot be '70000'")
    assert refused(log_level="loud").startswith("--log-level cannot be 'loud'")
    config = yaml_file(tmp_path, "max_items: many\n")
    assert refused(config).startswith(f"max_items in {config} cannot be 'many'")
    # What Kubernetes puts there for a Service named moonshelf; see enableServiceLinks in deploy/.
    monkeypatch.setenv("MOONSHELF_PORT", "tcp://10.0.0.1:80")
    assert refused().startswith("MOONSHELF_PORT cannot be 'tcp://10.0.0.1:80'")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("port: [", r"no valid YAML \(line 1\)"),
        ("- port", "must hold lines such as"),
        ("port: 1\n\xff", "is not UTF-8"),
    ],
)
def test_a_broken_file(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "moonshelf.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        load_settings("shop", path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_settings("shop", tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("remote_hosts", "https://a.example/", "no host name"),
        ("remote_hosts", "*", "no host name"),
        ("remote_hosts", '["a', "like a JSON list"),
        ("cors_origins", "*", "no origin"),
        ("cors_origins", "https://a.example/page", "no origin"),
        ("trusted_proxies", "10.0.0.0/99", "neither an address nor a network"),
        ("rate_limit", "often", "no rate"),
        ("rate_limit", "0/minute", "no rate"),
        ("deadline_s", 0, "greater than 0"),
        ("batch_wait_ms", float("nan"), "finite"),
        ("deadline_s", float("inf"), "finite"),
    ],
)
def test_values_that_mean_nothing(name: str, given: Any, said: str) -> None:
    assert said in refused(**{name: given})


def test_a_rate_of_several_limits() -> None:
    assert load_settings("shop", rate_limit="10/second;600/minute").rate_limit == "10/second;600/minute"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "shop.example"])
def test_without_keys_only_this_machine_is_served(host: str, tmp_path: Path) -> None:
    assert "keys_file" in refused(host=host) and not is_loopback(host)
    assert load_settings("shop", host=host, keys_file=tmp_path / "keys.json").host == host
    assert load_settings("shop", host=host, allow_open=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert load_settings("shop", host=host).host == host


def test_no_password_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    got = load_settings("shop", creative_model="openai:https://me:hunter2@judge.example/v1?key=hunter3#qwen")
    shown = got.shown()
    assert "hunter" not in str(shown)
    assert shown["creative_model"] == "openai:https://judge.example/v1?…#qwen"
    assert set(shown) == set(Settings.model_fields) and shown["folder"] == "shop"
    assert "hunter" not in refused(
        model="x", port=-1, creative_model="openai:https://me:hunter2@judge.example#m"
    )


def test_settings_do_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        load_settings("shop").port = 1


def test_the_precisions_are_those_of_the_model() -> None:
    import inspect

    from moonshelf import MoonModel
    from moonshelf.model.precision import Precision

    field = Settings.model_fields["precision"]
    assert get_args(field.annotation) == get_args(Precision)
    assert field.default == inspect.signature(MoonModel.from_pretrained).parameters["precision"].default


def test_importing_settings_loads_neither_server_nor_model() -> None:
    code = (
        "import sys, moonshelf.service.settings, moonshelf.service.keys; "
        "print([m for m in ('torch', 'transformers', 'fastapi', 'lancedb', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
