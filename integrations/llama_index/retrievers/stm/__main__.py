"""``python -m llama_index.retrievers.stm INDEX "a question"``: an index as LlamaIndex sees it."""

from __future__ import annotations

import argparse
import json
import sys

from llama_index.retrievers.stm.base import STMRetriever


def main() -> None:
    """Print ``{"question": ..., "hits": [[id, score], ...]}`` for each question."""
    parser = argparse.ArgumentParser(prog="python -m llama_index.retrievers.stm", description=__doc__)
    parser.add_argument("index", help="index folder")
    parser.add_argument("questions", nargs="+", help="questions")
    parser.add_argument("-k", type=int, default=4, help="hits per question")
    arguments = parser.parse_args()
    retriever = STMRetriever(index=arguments.index, similarity_top_k=arguments.k)
    for question in arguments.questions:
        hits = [[node.node.node_id, node.score] for node in retriever.retrieve(question)]
        sys.stdout.write(json.dumps({"question": question, "hits": hits}) + "\n")


if __name__ == "__main__":
    main()
