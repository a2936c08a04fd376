"""What stands where an identifier is missing is no identifier, in any spelling and many languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.identifiers import is_makerless, is_placeholder, is_placeholder_gtin

PLACEHOLDERS = (
    "", "  ", "-", "—", "?", "...", "N/A", "n.a.", "#N/A", "<NA>", "NaN", "None", "[none]", "null", "NULL",
    "undefined", "0", "000000", "0.0", "0,00", "9999999", "xxx", "Does not apply", "Doesn't apply",
    "Not Available", "TBD", "no EAN", "without barcode", "k.A.", "Keine Angabe", "Unbekannt",
    "nicht zutreffend", "Nicht verfügbar", "entfällt", "ohne Artikelnummer", "No aplica", "sin código",
    "N/D", "Ninguno", "desconocido", "Não aplicável", "Nenhum", "Non applicable", "sans objet",
    "Ne s'applique pas", "Inconnu", "non applicabile", "sconosciuto", "n.v.t.", "niet van toepassing",
    "nie dotyczy", "brak", "saknas", "ukendt", "ei tiedossa", "neuvedeno", "belirtilmemiş", "Yok", "nincs",
    "не указано", "нет", "δεν ισχύει", "該当なし", "なし", "不适用", "해당 없음", "ไม่มี",
)  # fmt: skip
IDENTIFIERS = (
    "A-1", "0123", "10", "12345", "0-1", "x", "No. 5", "Nano", "NA-KD", "N&D", "S & N", "Nothing", "Sin City",
    "None Such", "00A0", "Noël", "4006381333931", "99", "零",
)  # fmt: skip


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_placeholders(text: str) -> None:
    for written in (text, text.upper(), text.lower(), f" {text}.", f"({text})", f"'{text}'"):
        assert is_placeholder(written), written


@pytest.mark.parametrize("text", IDENTIFIERS)
def test_identifiers_are_kept(text: str) -> None:
    assert not is_placeholder(text)


def test_words_for_no_maker_are_no_brand_but_may_be_read() -> None:
    for brand in ("Unbranded", "generic", "No-Name", "ohne Marke", "N/A", "ノーブランド"):
        assert is_makerless(brand)
    assert not is_placeholder("Unbranded")
    assert not is_makerless("Acme")


def test_gtins_that_nobody_was_given() -> None:
    for digits in ("0000000000000", "1111111111116", "00000000", "9999999999994"):
        assert is_placeholder_gtin(digits)
    for digits in ("4006381333931", "96385074", "036000291452"):
        assert not is_placeholder_gtin(digits)


@given(st.text(max_size=50))
def test_any_text_has_an_answer(text: str) -> None:
    assert is_placeholder(text) in (True, False)
