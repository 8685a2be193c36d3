"""Backbones as torch modules: tensors in, tensors out; no files, no tokenizer, no device chosen."""
