"""Encodings of tables are told from few words, said when guessed, and can be given."""

from __future__ import annotations

import random
from pathlib import Path

import helpers as h
import pytest
from babel import Locale

from moonshelf.errors import UserError
from moonshelf.feeds.check import check_feed
from moonshelf.feeds.encodings import encoding_of

TEXTS = [
    ("cp1252", "Tasse;12,99 €"),
    ("cp1252", "Mug;£12.50"),
    ("cp1252", "Café crème"),
    ("cp1252", "Größe für Männer"),
    ("cp1252", "Chaussures d’été – taille 38"),
    ("cp1252", "Mug ½ l ©"),
    ("iso8859-15", "Tasse für 12,99 €"),
    ("cp1250", "Koszulka z krótkim rękawem żółta"),
    ("iso8859-2", "Koszulka z krótkim rękawem, śliczna"),
    ("cp1250", "Tričko s krátkým rukávem žluté"),
    ("cp1251", "Красная кружка;299 руб."),
    ("koi8-r", "Красная кружка большая"),
    ("cp866", "Красная кружка большая"),
    ("cp1253", "Κόκκινη κούπα, μπλε φόρεμα"),
    ("cp1254", "Kırmızı kupa, büyük çiçekli gömlek şık"),
    ("cp1255", "ספל אדום, שמלה כחולה"),
    ("cp1256", "كوب أحمر, فستان أزرق طويل"),
    ("cp874", "แก้วสีแดง, ชุดสีน้ำเงิน"),
    ("cp850", "Größe für Männer, weiß"),
    ("mac-roman", "Größe für Männer, café crème"),
    ("cp932", "赤いマグカップ, 青いワンピース"),
    ("euc-jp", "赤いマグカップ, 青いワンピース"),
    ("gb18030", "红色马克杯, 蓝色连衣裙"),
    ("big5", "紅色馬克杯, 藍色連衣裙"),
    ("cp949", "빨간 머그컵, 파란 드레스"),
    ("utf-16-le", "Красная кружка"),
    ("utf-32", "Красная кружка"),
]


@pytest.mark.parametrize(("encoding", "words"), TEXTS)
def test_the_encoding_is_told_from_few_words(encoding: str, words: str) -> None:
    text = f"id;title\n1;{words}\n2;Mug\n"
    data = text.encode(encoding)
    assert data.decode(encoding_of(data)) == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_whatever_the_script(tmp_path: Path, encoding: str) -> None:
    text = "id;title\n" + "".join(f"{n};Красная кружка большая\n" for n in range(50))
    found = h.products(h.write(tmp_path / "f.csv", text, encoding))
    assert (len(found), found[9].title) == (50, "Красная кружка большая")


def test_a_guess_is_said_and_can_be_replaced(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "id,title\n1,Bőr cipő\n", "cp1250")
    assert any("windows-1252" in note and "--encoding" in note for note in check_feed(path).notes)
    report = check_feed(path, encoding="windows-1250")
    assert report.notes == []
    assert h.products(path, encoding="windows-1250")[0].title == "Bőr cipő"


@pytest.mark.parametrize("place", [3, 3_000])
def test_lines_of_another_encoding_are_mended_and_said(tmp_path: Path, place: int) -> None:
    lines = [f"{n},Café {n}".encode() for n in range(5_000)]
    lines[place] = "x,Größe für 5 €".encode("cp1252")
    path = h.write(tmp_path / "f.csv", b"id,title\n" + b"\n".join(lines))
    found = h.products(path)
    assert (found[place].title, found[place + 1].title) == ("Größe für 5 €", f"Café {place + 1}")
    rows = [problem.row for problem in h.problems(path)]
    assert set(rows) == {place + 1, "f.csv"}


def test_prices_are_decoded_before_they_are_read(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "id;title;price\n1;Tasse;12,99 €\n2;Mug;£5\n", "cp1252")
    assert [(p.price, p.currency) for p in h.products(path)] == [(12.99, "EUR"), (5.0, "GBP")]


@pytest.mark.parametrize("name", ["nope", "base64", "rot13", "undefined", "zlib", "idna", "x\0y"])
def test_an_encoding_that_does_not_exist_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no encoding"):
        h.products(h.write(tmp_path / "f.csv", "id,title\n1,Mug\n"), encoding=name)


# Of each page the languages that CLDR has names in; where pages of one shape cannot be told apart (ISO 8859-2
# and Windows-1250, Mac Roman and Windows-1252) nothing is promised.
NAMES = {
    "cp1252": "de fr es da sv", "cp850": "de fr es", "cp1250": "pl cs hu hr", "cp1251": "ru uk bg sr",
    "koi8-r": "ru", "cp866": "ru", "cp1253": "el", "cp1254": "tr", "cp1255": "he", "cp1256": "ar",
    "cp874": "th", "cp932": "ja", "gb18030": "zh", "big5": "zh_Hant", "cp949": "ko",
}  # fmt: skip


def test_nine_of_ten_small_tables_are_read_in_their_encoding() -> None:
    """Tables of a few names of countries; charset-normalizer alone reads 222 of these 297, this 278."""
    drawn = random.Random(5)
    right = total = 0
    for encoding, languages in NAMES.items():
        for language in languages.split():
            names = list(Locale.parse(language).territories.values())
            for _ in range(12):
                lines = [f"{n};{name}\n" for n, name in enumerate(drawn.sample(names, 8))]
                data = ("id;title\n" + "".join(lines)).encode(encoding, "ignore")
                if not data.isascii():
                    total += 1
                    right += data.decode(encoding_of(data), "replace") == data.decode(encoding)
    assert right > 0.9 * total, f"{right} of {total}"
