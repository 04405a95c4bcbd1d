"""Make `bundled/prompts`: the captions of the emoji data, both those for training and those held out.

npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
python scripts/make_emoji_captions.py package src/sfumato/bundled/prompts
"""

import json
import sys
from pathlib import Path

from sfumato.emoji.source import EmojiImages


def main(package: Path, folder: Path) -> None:
    source = EmojiImages(package)
    folder.mkdir(parents=True, exist_ok=True)
    for file, validation in (("emoji-captions", False), ("emoji-captions-held-out", True)):
        items = [i for i in range(len(source)) if bool(source.validation[i]) == validation]
        captions = {name: name for name in source.class_names} if not validation else {}
        for item in items:
            captions[source.caption(item, with_scene=True)] = source.class_names[item // len(source.scenes)]
        lines = [json.dumps({"caption": caption, "class": name}) for caption, name in captions.items()]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
        if not validation:  # so few captions that each is drawn often in a short run
            (folder / "emoji-captions-few.jsonl").write_text("\n".join(lines[79::160]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
