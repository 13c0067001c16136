"""The panel: four medical collections and two general guards, with their training pairs and dev queries.

Test queries are the panel's published ones. Development queries come from elsewhere: cut by a seeded hash out
of the published train where there is one, else written by an LLM for documents that nothing is trained on.
The guards' queries are halved: searches see the one half, the final figures the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from stm_training.data.leakage import normalise, without_leaks
from stm_training.data.reading import read_beir, read_corpus
from stm_training.data.records import Collection, Pair, Passage
from stm_training.data.sample import split_documents
from stm_training.data.splits import halves, split_collection
from stm_training.llm.openai_client import OpenAIServer
from stm_training.llm.replay import ReplayServer, read_recordings
from stm_training.pipeline.collections import Problem, guard_problem, judged_and_sample
from stm_training.recipe import GuardSection, expand_variables
from stm_training.synthesize.run import synthesize

LABELLED = ("disease_ontology", "medquad", "scifact")
SYNTHETIC = ("scifact", "evidence_inference_passages")
DOMAINS = ("scifact", "disease_ontology", "medquad", "evidence_inference_passages")
GUARDS = {"arguana": True, "climate_fever_small": False}  # whether a query's own document is left out


@dataclass
class Panel:
    """Collections, training pairs and problems, each made when it is first asked for.

    Attributes:
        full: Full test collections instead of the panel's cuts.
        dev_documents: Passages that each development set is ranked among.
        dev_queries: Development queries per set, at most.
        seed: Seeds every split and sample.
        full_guards: The guards' test halves out of their full collections, without the queries of the
            development halves, which always come from the panel's cuts.
        hold_out_full: Train on no query of the full test collections, whichever are tested.
    """

    full: bool = False
    dev_documents: int = 400
    dev_queries: int = 120
    seed: int = 0
    full_guards: bool = False
    hold_out_full: bool = False
    _train: dict[str, Collection] = field(default_factory=dict)

    @cached_property
    def data(self) -> Path:
        """Where the collections lie."""
        return Path(expand_variables("${STM_DATA}"))

    @cached_property
    def tests(self) -> dict[str, Problem]:
        """Test problems of the domain, then of the guards (their test halves)."""
        cut = self.data if self.full else self.data / "panel"
        problems = {}
        for name in DOMAINS:
            found = read_beir(cut / name, "test", "skip")
            problems[name] = Problem(name, list(found.corpus.values()), found.queries, found.qrels)
        return problems | {
            name: self._test_guard(name, exclude_self) for name, exclude_self in GUARDS.items()
        }

    def _test_guard(self, name: str, exclude_self: bool) -> Problem:
        if not self.full_guards:
            guard = GuardSection(path=str(self.data / "panel" / name), exclude_self=exclude_self)
            return guard_problem(name, guard, "test", seed=self.seed, max_documents=None)
        # ArguAna judges a few documents that its corpus lacks: those judgements are left out.
        whole = read_beir(self.data / name, "test", "skip", allow_title_only=True)
        _, test = halves(whole, seed=self.seed)
        found = Problem(name, list(whole.corpus.values()), test.queries, test.qrels, exclude_self)
        return apart(found, self.dev_guards[name].queries)

    @cached_property
    def dev(self) -> dict[str, Problem]:
        """Development problems of the domain."""
        found = {name: self._labelled_dev(name) for name in LABELLED}
        found["evidence_inference_passages"] = self._synthetic_dev
        return {name: found[name] for name in DOMAINS}

    @cached_property
    def dev_guards(self) -> dict[str, Problem]:
        """The guards' development halves."""
        return {
            name: guard_problem(
                name,
                GuardSection(path=str(self.data / "panel" / name), exclude_self=exclude_self),
                "dev",
                seed=self.seed,
                max_documents=self.dev_documents,
            )
            for name, exclude_self in GUARDS.items()
        }

    def labelled_pairs(self, name: str) -> list[Pair]:
        """Training pairs of a collection's published train, without the development queries."""
        train = self._split(name)["train"]
        held_out = self._held_out
        pairs = [
            Pair(
                query=train.queries[query],
                positive=train.corpus[document].content,
                query_id=f"{name}/{query}",
                positive_id=f"{name}/{document}",
                source=name,
                kind="labelled",
            )
            for query, grades in train.qrels.items()
            for document, grade in grades.items()
            if grade > 0 and train.corpus[document].content.strip()
        ]
        return without_leaks(pairs, held_out)[0]

    @cached_property
    def synthetic_pairs(self) -> list[Pair]:
        """Pairs from the recorded completions, without those of held-out documents and of known queries."""
        held_out = {passage.id for passage in self._parts["dev"]}
        kept = [pair for pair in self._written if pair.positive_id not in held_out]
        return without_leaks(kept, self._held_out)[0]

    @cached_property
    def _held_out(self) -> list[str]:
        problems = [*self.tests.values(), *self.dev.values(), *self.dev_guards.values()]
        if self.hold_out_full:
            problems += replace(self, full=True, full_guards=True).tests.values()
        return [text for problem in problems for text in problem.queries.values()]

    def _split(self, name: str) -> Mapping[str, Collection]:
        if name not in self._train:
            self._train[name] = read_beir(self.data / name, "train", "skip")
        return split_collection(self._train[name], seed=self.seed, fractions={"train": 0.8, "dev": 0.2})

    def _labelled_dev(self, name: str) -> Problem:
        dev = self._split(name)["dev"]
        queries = dict(list(dev.queries.items())[: self.dev_queries])
        qrels = {query: dev.qrels[query] for query in queries}
        passages = judged_and_sample(list(dev.corpus.values()), qrels, self.dev_documents, seed=self.seed)
        return Problem(name, passages, queries, qrels)

    @cached_property
    def _recorded(self) -> list[Passage]:
        ids = read_recordings(Path(expand_variables("${STM_LLM}")) / "recorded.jsonl")
        return [
            passage for name in SYNTHETIC for passage in read_corpus(self.data / name) if passage.id in ids
        ]

    @cached_property
    def _parts(self) -> Mapping[str, list[Passage]]:
        return split_documents(self._recorded, seed=self.seed, fractions={"train": 0.85, "dev": 0.15})

    @cached_property
    def _written(self) -> list[Pair]:
        recordings = Path(expand_variables("${STM_LLM}")) / "recorded.jsonl"
        documents = {passage.id: passage.content for passage in self._recorded}
        with tempfile.TemporaryDirectory() as folder, ReplayServer(recordings, documents) as server:
            llm = OpenAIServer(server.base_url, "recorded")
            return synthesize(self._recorded, llm, journal=Path(folder) / "journal.jsonl").pairs

    @cached_property
    def _synthetic_dev(self) -> Problem:
        name = "evidence_inference_passages"
        corpus = read_corpus(self.data / name)
        own = {passage.id for passage in corpus}
        held_out = {passage.id for passage in self._parts["dev"]} & own
        kinds = ("question", "claim")
        chosen = [pair for pair in self._written if pair.positive_id in held_out and pair.kind in kinds]
        chosen = chosen[: self.dev_queries]
        queries = {f"{pair.positive_id}/{pair.kind}": pair.query for pair in chosen}
        qrels = {f"{pair.positive_id}/{pair.kind}": {str(pair.positive_id): 1} for pair in chosen}
        passages = judged_and_sample(corpus, qrels, self.dev_documents, seed=self.seed)
        return Problem(name, passages, queries, qrels)


def apart(problem: Problem, queries: Mapping[str, str] | Iterable[str]) -> Problem:
    """A problem without queries that were used elsewhere.

    Args:
        problem: The problem.
        queries: Texts, or texts by id; a query goes if its text is among them but for case and punctuation,
            or its id is.
    """
    ids, texts = (queries.keys(), queries.values()) if isinstance(queries, Mapping) else ((), queries)
    forms = {normalise(text) for text in texts}
    kept = {
        query: text
        for query, text in problem.queries.items()
        if query not in ids and normalise(text) not in forms
    }
    return replace(problem, queries=kept, qrels={query: problem.qrels[query] for query in kept})
