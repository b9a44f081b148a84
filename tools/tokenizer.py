"""spatext-tokenizer: learn CLIP's byte-pair encoding from the texts of shards.

`spatext-tokenizer data/shapes --out base/tokenizer --vocab-size 1024 --max-length 64`
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from spatext.datamodules.shards import Shard, expand_shards, index_shard, read_sample
from spatext.modules.networks.text_tower import train_tokenizer
from spatext.tools.console import one_line_errors


def texts_of(shards: list[Shard]) -> Iterator[str]:
    """Captions, and segment texts where the shards have them."""
    for shard in tqdm(shards, desc="texts", unit="shard"):
        for record in index_shard(shard):
            members = read_sample(record)
            if "txt" in members:
                yield members["txt"].decode("utf-8", errors="replace")
            meta = json.loads(members.get("json", b"{}"))
            yield from (segment.get("text", "") for segment in meta.get("segments", ()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", help="folder, glob or brace pattern of tar shards")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=1024, help="at least 514")
    parser.add_argument("--max-length", type=int, default=77, help="tokens, both ends included")
    args = parser.parse_args()
    with one_line_errors():
        if args.vocab_size < 514:
            raise ValueError(
                f"--vocab-size: found {args.vocab_size}, expected at least 514 (bytes and ends)"
            )
        tokenizer = train_tokenizer(
            texts_of(expand_shards(args.shards)),
            vocab_size=args.vocab_size,
            max_length=args.max_length,
        )
        tokenizer.save_pretrained(args.out)
        print(f"{args.out}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
