"""Phrases that catalogue text, queries and words on pictures have no business with, by what they try.

Each is looked for in text whose look-alike letters were folded and whose accents are gone, ignoring case;
where case tells A (the image) from a (the article), it counts. They were tuned so that the titles of real
shops and ordinary advertising copy ("choose your size", "the best choice") pass: phrases need an order and
an object, or a name of an image and a claim, and single words are never enough. The list is open to
additions: a phrase for it comes with a case in `injection` and a slogan that it must not catch in the tests.
"""

from __future__ import annotations

import re

HIDDEN, MARKUP, TAG, ROLE = "hidden characters", "markup", "reserved tag", "role marker"
REQUEST = "reads like a request"
NAMED, ORDER, BLOB = "names an image", "instruction", "encoded text"
SCRIPTS, LONG, LABEL = "mixed scripts", "too long", "label"
HOSTILE = frozenset({TAG, ROLE, NAMED, ORDER})  # what no advertisement says

_NAMES = r"think|thinking|answer|emb|verdict|rationale|im_start|im_end|tool_call|tool_response|inst|sys"
_TAGS = (
    _NAMES + r"|image|img|vision|video|system|assistant|user|human|developer|tool|s|label|score|result|output"
)
_OPEN, _CLOSE = r"[<\[{‹〈⟨《«＜【]", r"[>\]}›〉⟩》»＞】]"
_PICTURE = r"(?:images?|pictures?|photos?|pics?|creatives?|candidates?|banners?|thumbnails?)"
_THING = rf"(?:{_PICTURE}|ads?|advert\w*|options?|choices?|versions?|variants?|ones?|sides?|designs?)"
_PLACE = r"(?:first|second|1st|2nd|left|right|former|latter|other)(?:[ -]?hand(?: side)?)?"
_CHOOSE = r"(?:choose|pick|select|prefer|favou?r|vote(?: for)?|rate|rank|score|judge|declare|output|answer"
_CHOOSE += r"|respond|reply|say|return|click(?: on)?|go (?:with|for)|opt for)"
_LETTER = r"(?-i:[ABKMRT])(?![-'\w])"  # what images are called by people, and by `CreativePrompt`
_BEST = r"(?:better|best|superior|preferred|winner|winning|correct|chosen)"
_WHO = r"(?:judges?|evaluators?|graders?|assessors?|selectors?|raters?|(?:language |vision )?models?|ai|llms?"
_WHO += r"|assistants?|chat ?bots?)"

_SOURCES: dict[str, tuple[str, ...]] = {
    TAG: (
        r"<\|[^|<>]{0,40}\|?>?",
        rf"{_OPEN}\s*[/\\]?\s*(?:{_NAMES})\s*[/\\]?\s*{_CLOSE}|<\s*[/\\]?\s*(?:{_TAGS})\s*[/\\]?\s*>",
        r"<\s*/?\s*(?:think|answer|emb|verdict|im_start|im_end|tool_call|system|assistant)\b",
        r"\{\s*[\"']\w+[\"']\s*:|/\*|<!--|<<\s*/?\s*sys|\[\s*/?\s*inst\b|\{\{.{0,60}\}\}|```",
    ),
    ROLE: (
        r"(?:^|[.!?;:|\n\r\"'#*\])}>])\s*(?:system|assistant|user|human)\s*(?:prompt|message)?\s*:",
        r"\b(?:system|developer)\s+(?:prompt|message|override|instructions?|mode|note)\b",
        r"##\s{0,3}(?:instructions?|system|response|human|user|assistant|task|input|output)\b",
        r"\b(?:begin|end|start)\s+(?:of\s+)?(?:system|prompt|instructions?|user)\b(?!\s+manual)",
        r"\b(?:admin|root|sudo)\s+(?:override|mode|access)\b|\bjailbreak\b",
    ),
    NAMED: (
        rf"\b(?:{_PLACE}|better|best|other)\s+(?:images?|creatives?|candidates?|banners?|thumbnails?)\b",
        rf"\b{_PLACE}\s+{_THING}\s+(?:is|was|looks?|wins?|has|shows?|should|must|deserves?|beats?|to)\b",
        rf"\b{_PICTURE}\s*[#(\[\"']?\s*(?:{_LETTER}|[12]|(?-i:II?)|one|two)\b(?!\s*(?:pack|pcs|pieces?|x\b))",
        rf"\b(?:option|choice|version|candidate|label)\s*[(\[\"']?{_LETTER}\b",
        rf"\b(?:one|{_PICTURE}|option|side)\s+(?:on|at|to)\s+(?:the\s+|your\s+)?(?:left|right)\b",
        r"\b(?:is|as)\s+(?:\w+\s+){0,2}?(?:the|a)\s+(?:\w+\s+)?winner\b",
        r"^\W*[a-zA-Z]\W*$",  # a text of one letter says nothing else
        rf"\b{_LETTER}\b\s*[\"')\]]?\s*(?:is|was|looks?|should|must)\s+(?:\w+\s+){{0,3}}?(?:{_BEST}|win)\b",
        rf"\b{_LETTER}\b\s*[\"')\]]?\s*(?:wins?|won|beats?)\b",
        rf"\b(?:whichever\s+(?:{_PICTURE}|one|is|has|shows)|{_PICTURE}\s+(?:\w+\s+){{0,5}}?(?:wins?|beats|loses))\b",
        rf"\b{_LETTER}\s*(?:[<>=]{{1,2}})\s*{_LETTER}\b",
        rf"\b(?:is|are|as|looks?)\s+(?:\w+\s+){{0,2}}?{_BEST}\s+(?:than\s+the\s+other|{_PICTURE}|of\s+the\s+two)\b",
        rf"\bthe\s+(?:better|superior|winning|preferred|correct)\s+{_THING}\b",
        r"\bthis\s+(?:image|creative|picture|photo|ad|banner)\s+(?:\w+\s+){0,2}?"
        r"(?:wins?|is|must|should|deserves|has|gets|beats|will)\b",
    ),
    ORDER: (
        r"\b(?:ignore|disregard|forget|override|bypass|discard)[\W_]*"
        r"(?:(?:all|any|every|everything|of|the|your|my|these|those|its|what)[\W_]*)*"
        r"(?:previous|prior|above|preceding|earlier|instructions?|prompts?|rules?|guidelines?|criteria|protocol"
        r"|questions?|context|told|images?|other|title|query)",
        r"\b(?:new|updated|real|actual|hidden|special|additional|following)\s+(?:instructions?|task|rules?)\s*:",
        r"\b(?:follow|obey|execute)\s+(?:\w+\s+){0,3}?(?:instructions?|orders?|commands?)\b(?!\s+(?:manual|on))",
        r"\b(?:you|u)\s+(?:\w+\s+)?(?:must|should|shall|have to|need to|will (?:now|only|always)"
        rf"|are (?:now\s+)?(?:required |told |instructed )?to)\s+(?:\w+\s+){{0,3}}?{_CHOOSE}\b",
        r"\byou\s+are\s+(?:now\s+)?(?:an?|the)\s+(?:\w+\s+){0,3}?(?:judge|assistant|model|ai|evaluator|expert)\b",
        rf"\b(?:please\s+|always\s+|only\s+|just\s+|now\s+){{1,2}}{_CHOOSE}\s+(?:the|this|that|me|us|image|option)\b",
        rf"\b{_CHOOSE}\s+(?:always\s+|only\s+|with\s+)?(?:the|this|that|our)\s+(?:[\w-]+\s+){{0,3}}?{_THING}\b"
        rf"(?!\s+(?:for|that|you|to|of your|size))",
        rf"\b{_CHOOSE}\s+(?:the\s+)?{_PLACE}(?:\s+{_THING})?\s*(?:$|[.!,;:\"')])",
        rf"\b{_CHOOSE}\s*(?:is|:|=|with)?\s*[\"'(\[]?{_LETTER}"
        r"(?:[\"')\]]|\s*(?:$|[.!,;:]|\b(?:over|because|please|now|or|never|not|is)\b))",
        r"\b(?:verdict|winner|judge?ment|final answer|correct answer)\s*(?:is|:|=)",
        r"\banswer\s*(?:is|:|=)\s*[\"'(]?"
        rf"(?:{_LETTER}\b|[12]\b|{_PLACE}\b|the\b|{_PICTURE}\b)",
        r"\b(?:say|declare|claim|state|conclude)\s+(?:that\s+)?(?:it|this|the\s+\w+)\s+(?:wins?|won|is\s+better)\b",
        r"(?:^\W*|[.!?;|]\s*)(?:thought process|thoughts?|reasoning|chain of thought|analysis|rationale"
        r"|step[- ]by[- ]step|final answer|solution)\s*:",
        r"\blet'?s\s+(?:think|reason|solve|compare|analy[sz]e|evaluate)\s+(?:this|it|the|these|both|step)\b",
        rf"\b(?:note|message|attention|memo|dear|hey|hello|to)[,:]?\s+(?:to\s+)?(?:all\s+|the\s+)?{_WHO}\s*[:,!.]",
        rf"\bas\s+an?\s+{_WHO}\b",
        rf"\b{_WHO}\s+(?:must|should|has to|have to|shall|will|(?:is|are) instructed)\b",
        r"\b(?:judges?|evaluators?|raters?|annotators?|reviewers?|experts)\s+(?:\w+\s+){0,2}?"
        r"(?:agreed?|prefer(?:red)?|chose|decided|voted)\b",
        r"\b(?:hint|reminder)\s*:",
        r"\b(?:ground truth|(?:correct|expected|reference) answer|gold label|evaluation protocol)\b",
        r"\b(?:click[- ]?through|a/b[- ]?test(?:s|ed|ing)?|split[- ]?test(?:s|ed)?|conversion rate)\b",
        r"\b(?:higher|highest|better|best|more)\s+(?:ctr\b|clicks\b|click rate)",
        r"\b(?:do not|don'?t|never)\s+(?:choose|pick|select|prefer|vote|rate)\s+(?:for\s+)?"
        r"(?:the|this|that|image|any)\b",
        # German, French, Spanish, Portuguese, Italian, Russian, Chinese, Japanese: orders and named images
        r"\b(?:ignorier\w*|vergiss|missachte\w*)\b.{0,30}\b(?:anweisung\w*|vorherig\w*|regeln?|oben|bisher\w*)",
        r"\b(?:wahle?n?|bevorzuge?n?|nimm|klicke?n?)\b.{0,20}\b(?:erste[nsr]?|zweite[nsr]?|linke[nsr]?|rechte[nsr]?"
        r"|rote[nsr]?|bild)\b|\b(?:erste|zweite|linke|rechte)[sn]? bild\b",
        r"\b(?:ignore[zr]?|oublie[zr]?)\b.{0,30}\b(?:instructions?|consignes?|precedent\w*|regles?)",
        r"\b(?:choisis(?:sez)?|selectionnez|preferez)\b.{0,20}\b(?:premiere?|deuxieme|seconde?|gauche|droite|image)\b",
        r"\b(?:ignor[ae](?:r|d|n|te)?|olvid[ae]|dimentica|esque[cç]a)\b.{0,30}"
        r"\b(?:instruc\w*|istruzion\w*|anterior\w*|precedent\w*|reglas?|regras?|regole)",
        r"\b(?:elige|elija|escoge|selecciona|escolha|selecione|scegli|seleziona)\b.{0,20}"
        r"\b(?:primer[ao]?|segund[ao]|izquierda|derecha|imagen|imagem|primeir[ao]|direita|esquerda|prim[ao]"
        r"|second[ao]|sinistra|destra|immagine|roj[ao]|vermelh[ao]|ross[ao])\b",
        r"(?:игнорир\w*|забудь\w*).{0,30}(?:инструкц\w*|предыдущ\w*|правил\w*)",
        r"(?:выбер\w*|выбир\w*|предпоч\w*).{0,20}(?:перв\w*|втор\w*|лев\w*|прав\w*|красн\w*|изображен\w*|картинк\w*)",
        r"(?:忽略|无视|無視|忘记|忘記).{0,12}(?:指令|指示|提示|规则|規則|要求|以上|之前)",
        r"(?:选择|選擇|请选|請選|选|選).{0,6}(?:第一|第二|左|右|图|圖|红色的那)",
        r"(?:指示|命令|ルール).{0,8}(?:無視|忘れ)|(?:最初|左|右|1枚目|2枚目|一枚目|二枚目)の?.{0,6}(?:画像|写真).{0,6}選",
    ),
    BLOB: (
        r"(?:\\u[0-9a-f]{4}|\\x[0-9a-f]{2}){2,}|(?:%[0-9a-f]{2}){3,}|%3c|\\u003c|\\x3c|(?:&#x?[0-9a-f]{2,6};){3,}",
        r"\b[0-9a-f]{40,}\b|\b(?:[01]{8}\s?){4,}",
    ),
}  # fmt: skip
PATTERNS = {
    flag: tuple(re.compile(source, re.IGNORECASE) for source in sources) for flag, sources in _SOURCES.items()
}

# Words that are harmless alone and odd together in a title or a query, by their stems, whatever the grammar:
# two kinds of one of `TOGETHER` in one text are a request. Too coarse for words on a picture, where "choose
# your photo" is good copy.
_STEMS: dict[str, tuple[str, ...]] = {
    "dismiss": (
        r"\bignor|\bdisregard|\bforget (?:all|what|every|the)|\boverrul|\bskip the",
        r"\bdo not (?:look|read|use)|\bnegeer|zignoruj|\bpomin|\byok say",
        r"تجاهل|무시|अनदेखा|नज़रअंदाज़|忽略|無視|игнор|\babaikan",
    ),
    "command": (
        r"\binstru[ckz]|\bprompts?\b|\bguidelines?\b|\bcriteri|\bprotocol|\b(?:this|above) line\b",
        r"\beverything (?:written|said|above|before)|\banweisung|\bconsigne|\bpolecen|\btalimat",
        r"تعليمات|지시|निर्देश|指令|指示|инструкц",
    ),
    "choose": (
        r"\bchoos|\bpick\b|\bselect\b|\bprefer\b|\bfavou?r\b|\bvote\b|\bgo for\b|\bmark \S+ as\b|\brate it\b",
        r"\bkies\b|\bwybierz|\bsec(?:in)?\b|\bwahle?\b|\bchoisi|\beli[gj][ea]\b|\bscegli|\bpilih",
        r"اختر|선택|चुन|选|選|выбер",
    ),
    "picture": (
        r"\bimages?\b|\bpictures?\b|\bphotos?\b|\bcreatives?\b|\bbackgrounds?\b|\bthumbnail|\bbild\b",
        r"\bafbeelding|\bobraz|\bgorsel|\bimagen|\bimagem|\bimmagin|\bgambar",
        r"صورة|이미지|छवि|तस्वीर|图|圖|画像|изображ",
    ),
    "verdict": (
        r"\bverdict|\bjudg(?:e|es|ing)\b|\bevaluator|\bwinner\b|\bwon\b|\bwins\b|\bsuperior choice",
        r"\bas better|\bis better|\brespond|\breply\b|\banswer|\bscores?\b|\brank(?:ing)? it|\bof the two\b",
        r"\bmore clicks|\bshoppers? \w*\s*click",
    ),
    "must": (
        r"\bmust\b|\bregardless\b|\bfrom now on\b|\bhereby\b|\byour (?:task|job|role|goal)\b|\bonly with\b",
        r"\byou (?:should|will|shall|have to|need to)\b|\bwhatever you\b|\bno matter\b|\bkindly\b",
        r"\bunder no circumstances\b",
    ),
    "reader": (
        r"\bassistant|\bdear (?:ai|model|judge)|\ban? ai\b|\blanguage model",
        r"\bthe (?:model|system|algorithm)\b",
    ),
    "place": (r"\bthe (?:first|second|left|right|other|former|latter)\b",),
}
KINDS = {kind: re.compile("|".join(stems), re.IGNORECASE) for kind, stems in _STEMS.items()}
TOGETHER = (
    ("dismiss", "command"), ("dismiss", "picture"), ("dismiss", "place"), ("choose", "picture"),
    ("choose", "verdict"), ("choose", "place"), ("picture", "verdict"), ("picture", "place"),
    ("must", "choose"), ("must", "verdict"), ("must", "picture"), ("reader", "verdict"),
    ("reader", "choose"), ("reader", "command"), ("reader", "must"), ("place", "verdict"),
    ("command", "verdict"), ("command", "must"),
)  # fmt: skip

# For words that OCR read: without spaces, and with every l written as i (see `safety.instruction_like`).
_THIS = r"(?:this|the)(?:first|second|left|right|other|better|red|blue|green|white|black|bright)?"
SQUEEZED = re.compile(
    (
        r"(?:ignore|disregard|forget|override)(?:all|any|the|your|of|my)*"
        r"(?:previous|prior|above|instruction|prompt|ruleset|rules|question|otherimage)"
        rf"|(?:choose|pick|select|prefer|votefor|output|rate|rank){_THIS}(?:image|creative|picture|photo|one|ad)"
        r"|(?:choose|pick|select|prefer|votefor)(?:this|me)(?:$|now|over|please|notthe)"
        r"|(?:you|judges?|models?|ai|assistant|evaluators?)must(?:choose|pick|select|prefer|answer|say|rate|output)"
        r"|(?:this|first|second|left|right)(?:image|creative|picture|photo|ad)(?:is|wins|mustwin|shouldwin)"
        r"|systemprompt|systemoverride|systemmessage|correctansweris|finalanswer|theanswerisi?[ab]\b"
    ).replace("l", "i")
)
