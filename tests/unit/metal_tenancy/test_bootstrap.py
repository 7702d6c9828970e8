"""`metal-tenancy bootstrap`: wishes that cannot be met are refused before settings or database are touched."""

from __future__ import annotations

import pytest
from metal_tenancy.bootstrap import command


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--hours", "0"], "--hours"),
        (["--hours", "-1"], "--hours"),
        (["--hours", "nan"], "--hours"),
        (["--hours", "inf"], "--hours"),
        (["--hours", "9000"], "--hours"),
        (["--hours", "soon"], "--hours"),
        (["--user", ""], "--user"),
        (["--user", "u" * 257], "--user"),
    ],
)
def test_an_unusable_wish_names_its_option(
    words: list[str], option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METALPLANE_DATABASE_URL", raising=False)
    with pytest.raises(SystemExit) as ended:
        command(words)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert option in said.err
    assert said.out == ""
