"""Load a checkpoint with transformers, and compare it with ours: ids, and logits.

python examples/with_transformers.py FOLDER-OF-A-CHECKPOINT [TEXT]
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import clearhead

folder, text = [*sys.argv[1:], "The function returns"][:2]

model, tokenizer = clearhead.load(folder)
theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
their_tokenizer = AutoTokenizer.from_pretrained(folder)

ids = clearhead.text_to_token_ids(text, tokenizer)  # [1, N]
same_ids = ids.tolist() == [their_tokenizer(text)["input_ids"]]
with torch.no_grad():
    difference = (model(ids) - theirs(ids).logits).abs().max().item()

print(f"ids {'equal' if same_ids else 'DIFFER'}")
print(f"largest difference of logits {difference:.1e}")
sys.exit(not (same_ids and difference < 1e-3))
