"""Networks as torch modules: tensors in, tensors out. No files, no tokenizer, no choice of device."""
