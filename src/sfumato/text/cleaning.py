"""Clean captions in the same way as for LlamaGen's text encoder."""

import html
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable
from html.entities import html5
from html.parser import HTMLParser

_DASHES = (
    "-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_ADDRESS = r"[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_ADDRESSES = (
    (r"<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_ADDRESS})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_ADDRESS})", ""),
)
_DEBRIS = (
    (r"@\w+\b", ""),  # handles
    (r"[\u31c0-\u9fff]+", ""),  # Chinese and some Japanese characters
    (rf"[{_DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?|&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),  # article numbers
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILE_TYPES})", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_SHOPS = (  # what text from online shops is full of
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_TYPES})(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes; the second x is Cyrillic
)
_SPACES_AND_ENDS = (
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,:;-]", ""),
    (r"['_,:+-]$", ""),
    (r"^\.\S+$", ""),
)
_PLAIN = {  # what ftfy replaces: ligatures, wide and narrow forms, quotes, line breaks, control characters
    **{chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (0x3000, *range(0xFF01, 0xFFF0))},
    **{character: unicodedata.normalize("NFKC", character) for character in "ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬆ"},
    "ﬅ": "ſt",
    **dict.fromkeys("ʼ‘’‚‛", "'"),
    **dict.fromkeys("“”„‟", '"'),
    **dict.fromkeys("\r\u2028\u2029\u0085", "\n"),
    **dict.fromkeys(
        map(chr, (*range(9), 11, *range(14, 32), 127, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))), ""
    ),
}


class _Text(HTMLParser):
    """Collects the text between tags as Beautiful Soup does; scripts and styles are not text."""

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.pieces.append(data)

    def handle_entityref(self, name: str) -> None:
        self.pieces.append(html5.get(f"{name};", f"&{name}"))

    def handle_charref(self, name: str) -> None:
        self.pieces.append(html.unescape(f"&#{name};"))


def clean_caption(caption: str) -> str:
    """Clean a caption as for the released text-conditional LlamaGen: lowercase, without parts that are not language.

    This follows `clean_caption` in LlamaGen's `language/t5.py` (from DeepFloyd IF via PixArt-alpha), which is applied
    twice, in training and in sampling. What differs is that wrongly decoded text (`cafÃ©`) is not repaired.
    """
    return _clean(_clean(caption))


def _clean(caption: str) -> str:
    caption = _replace(urllib.parse.unquote_plus(caption).strip().lower(), _ADDRESSES)
    parser = _Text()
    parser.feed(caption)
    parser.close()
    caption = _replace("".join(parser.pieces), _DEBRIS)
    if len(re.findall("[-_]", caption)) > 3:  # words_joined_like_this
        caption = re.sub("[-_]", " ", caption)
    caption = unicodedata.normalize("NFC", html.unescape(caption).translate(str.maketrans(_PLAIN)))
    return _replace(_replace(html.unescape(caption).strip(), _SHOPS), _SPACES_AND_ENDS).strip()


def _replace(text: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
