"""``python -m langchain_stm INDEX "a question"``: LangChain's view of an index folder, as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys

from langchain_stm.retrievers import STMRetriever


def main() -> None:
    """Print ``{"question": ..., "hits": [[id, score], ...]}`` for each question."""
    parser = argparse.ArgumentParser(prog="python -m langchain_stm", description=__doc__)
    parser.add_argument("index", help="index folder")
    parser.add_argument("questions", nargs="+", help="questions")
    parser.add_argument("-k", type=int, default=4, help="hits per question")
    arguments = parser.parse_args()
    retriever = STMRetriever(index=arguments.index, k=arguments.k)
    for question in arguments.questions:
        documents = retriever.invoke(question)
        hits = [[document.id, document.metadata["score"]] for document in documents]
        sys.stdout.write(json.dumps({"question": question, "hits": hits}) + "\n")


if __name__ == "__main__":
    main()
