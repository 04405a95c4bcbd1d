"""Clean captions in the same way as for LlamaGen's text encoder."""

import html
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable

_DASHES = (
    "-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_DEBRIS = (
    (r"\bhttps?:\S+|\bwww\.\S+|\b[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)\b[\w/-]*", ""),  # addresses
    (r"<person>", "person"),
    (r"</?[a-z!][^<>]*>", ""),  # tags
    (r"@\w+", ""),  # handles
    (r"[\u31c0-\u9fff]+", ""),  # Chinese and some Japanese characters
    (rf"[{_DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"\\n", " "),
    (r"#\d{1,3}\b|#\d{5,}\b|\b\d{6,}\b", ""),  # article numbers
    (r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}|[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+|\s+\.\s+", " "),
)
_SPACES_AND_ENDS = (
    (r"\b\s+:\s+", ": "),
    (r"(\D[,.])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^['_,:;-]", ""),
    (r"['_,:+-]$", ""),
)


def clean_caption(caption: str) -> str:
    """Clean a caption as for the released text-conditional LlamaGen: lowercase, without parts that are not language.

    This is a shortened version of `clean_caption` in LlamaGen's `language/t5.py` (from DeepFloyd IF via PixArt-alpha),
    which is applied twice, in training and in sampling. For captions that people write, the results are the same. It
    does not repair wrongly decoded text, and omits the rules for text from online shops: article codes like jc6640,
    sizes like 512x512, IP addresses, "free shipping", "download", "click for", "page 3".
    """
    return _clean(_clean(caption))


def _clean(caption: str) -> str:
    caption = html.unescape(urllib.parse.unquote_plus(caption)).strip().lower()
    caption = _replace(caption, _DEBRIS)
    if len(re.findall("[-_]", caption)) > 3:  # words_joined_like_this
        caption = re.sub("[-_]", " ", caption)
    return _replace(unicodedata.normalize("NFC", caption).strip(), _SPACES_AND_ENDS).strip()


def _replace(text: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
