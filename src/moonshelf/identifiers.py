"""Values that stand where an identifier is missing: "N/A", "Does not apply", "unbekannt", 0, "-", 000000.

One list for GTIN, part number, SKU, brand and group, used by every feed reader and by everything that takes
equal identifiers as evidence. The words are those that shops' exports and marketplaces' forms write; a value
is compared without case, accents and punctuation, so `n.a.`, `N/A` and `#N/A` are one word.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_WORDS = """
n a, na, nan, none, null, nil, no, false, undefined, unknown, unspecified, unavailable, missing, empty,
default, various, misc, tba, tbc, tbd, to be defined, to be confirmed, not available, not applicable,
not specified, not known, not given, not provided, not set, not assigned, no value, no data, no info,
does not apply, doesn t apply, do not apply, not apply, does not exist, exempt, gtin exempt, exempted,
see description, placeholder, k a, keine angabe, keine angaben, keine, keiner, kein, ohne, ohne angabe,
nicht zutreffend, trifft nicht zu, nicht vorhanden, nicht verfugbar, nicht angegeben, nicht bekannt,
nicht relevant, nicht anwendbar, unbekannt, entfallt, fehlt, leer, nichts, n c, n d, s o, s d, s n, aucun,
aucune, inconnu, inconnue, neant, sans objet, non applicable, non disponible, non renseigne,
non renseignee, non communique, non specifie, non connu, pas disponible, ne s applique pas, indisponible,
vide, no aplica, no aplicable, no se aplica, no procede, no disponible, no especificado, no especificada,
no consta, no tiene, sin especificar, sin datos, ninguno, ninguna, desconocido, desconocida, vacio, nulo,
non applicabile, non si applica, non pertinente, non specificato, non noto, nessuno, nessuna, nessun,
sconosciuto, sconosciuta, assente, vuoto, nao aplicavel, nao se aplica, nao disponivel, nao informado,
nao especificado, nao tem, nenhum, nenhuma, desconhecido, desconhecida, indisponivel, vazio, n v t, nvt,
niet van toepassing, niet beschikbaar, niet bekend, niet opgegeven, geen, onbekend, leeg, nie dotyczy,
nie podano, nie ma, brak, brak danych, nieznany, nieznana, nieznane, ej tillampligt, ej tillamplig,
ej angivet, finns ej, saknas, ingen, inget, inga, okand, okant, ukendt, ukjent, ikke relevant,
ikke tilgængelig, ikke tilgjengelig, ikke oppgitt, ikke angivet, mangler, ei ole, ei sovellu, ei tiedossa,
ei saatavilla, tuntematon, puuttuu, neni, neuvedeno, neuvedene, neznamy, neznama, zadny, zadna, ziadny,
nevztahuje se, chybi, prazdne, yok, bilinmiyor, belirtilmemis, gecerli degil, uygulanamaz, mevcut degil,
nincs, nincs adat, ismeretlen, nem alkalmazhato, nu se aplica, nu exista, necunoscut, niciunul, нет,
нет данных, не применимо, неприменимо, неизвестно, неизвестен, не указано, не указан, не указана,
отсутствует, не задано, пусто, немає, невідомо, не вказано, няма, неизвестна, δεν ισχυει, αγνωστο, καμια,
なし, 無し, 該当なし, 不明, 未設定, 无, 無, 暂无, 没有, 不适用, 不適用, 未知, 空, 없음, 해당 없음,
해당없음, لا ينطبق, غير متوفر, غير معروف, לא רלוונטי, אין, khong co, tidak ada, ไม่มี
"""
_MAKERLESS = """
unbranded, generic, no brand, nobrand, no name, noname, oem, own brand, various brands, brandless,
off brand, markenlos, ohne marke, ohne markenname, keine marke, sans marque, sin marca, senza marca,
senza marchio, sem marca, merkloos, zonder merk, bez marki, bez znacky, markasiz, без бренда, ノーブランド,
ノーブランド品, 无品牌
"""
# "no EAN", "ohne Artikelnummer", "sin código": a word for "without" before the name of the identifier itself.
_WITHOUT = re.compile(
    r"(no|without|missing|keine?|ohne|sans|aucune?|pas de|sin|sem|senza|nessuna?|geen|zonder|brak|bez|ingen"
    r"|utan|uden|uten|нет|без) "
    r"(valid )?(gtin|ean|upc|isbn|barcode|bar code|strichcode|mpn|sku|id|asin|code|codigo|codice|kod|код"
    r"|number|nummer|numero|part number|(teile|artikel|hersteller)nummer|ref|reference|referencia|riferimento"
    r"|parent|group|gruppe|identifier)( \d{1,2})?"
)  # fmt: skip
_FILLER = re.compile(r"9{6,}|x{3,}")


@lru_cache(maxsize=65_536)
def is_placeholder(text: str) -> bool:
    """Whether a value says that there is no identifier. Empty text is one."""
    folded = _fold(text[:200])
    if not folded.strip("0 "):
        return True  # nothing but zeros and punctuation
    return folded in _PLACEHOLDERS or bool(_FILLER.fullmatch(folded) or _WITHOUT.fullmatch(folded))


def is_makerless(brand: str) -> bool:
    """Whether a brand names no maker: a placeholder, or words such as "Unbranded" that shoppers read."""
    return is_placeholder(brand) or _fold(brand[:200]) in _NO_MAKERS


def is_placeholder_gtin(digits: str) -> bool:
    """Whether digits with a right check digit are still no article's: 000…0, 1111111111116."""
    body = digits.lstrip("0")[:-1]
    return not body or (len(body) > 5 and len(set(body)) == 1)


def _fold(text: str) -> str:
    """Letters and digits without case and accents, words apart by one space."""
    text = text.replace("&", " and ")  # N&D is a brand, n/d is none
    plain = unicodedata.normalize("NFKD", text.replace("ø", "o").replace("ł", "l")).casefold()
    bare = "".join(c for c in plain if not unicodedata.combining(c)).replace("ı", "i").replace("ß", "ss")
    return re.sub(r"[\W_]+", " ", bare).strip()


_PLACEHOLDERS = frozenset(_fold(word) for word in _WORDS.replace("\n", " ").split(","))
_NO_MAKERS = frozenset(_fold(word) for word in _MAKERLESS.replace("\n", " ").split(","))
