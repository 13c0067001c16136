"""Fine-tune any encoder or decoder into a retriever: backbone, LoRA, contrastive losses, sampler, trainer."""
