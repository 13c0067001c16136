"""The fp16 file on a CUDA device: close to fp32, and the same in any batch."""

from __future__ import annotations

import numpy as np
import pytest

from stm_retriever import Embedder
from stm_retriever.errors import ProviderError, StmError
from tests.exported_models import TEXTS, exported_with_variants

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["bert", "qwen3", "gemma"])
def test_fp16_on_cuda_gives_nearly_the_fp32_vectors(family: str) -> None:
    folder = exported_with_variants(family).folder
    try:
        embedder = Embedder.load(folder, variant="fp16", device="cuda")
    except ProviderError as error:
        pytest.skip(f"no CUDA device: {error}")
    except StmError as error:
        pytest.fail(str(error))
    wanted = Embedder.load(folder, threads=1).encode_document(TEXTS)
    found = embedder.encode_document(TEXTS)
    assert (found * wanted).sum(axis=1).min() >= 0.999
    alone = np.concatenate([embedder.encode_document([text]) for text in TEXTS])
    assert np.abs(found - alone).max() <= 1e-2
