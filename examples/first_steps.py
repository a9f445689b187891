"""The model alone: build it, look at the shapes, take one step, let it write.

python examples/first_steps.py
"""

import torch

import clearhead

torch.manual_seed(0)
tokenizer = clearhead.build_tokenizer("bytes")
shape = clearhead.GPTConfig(
    vocab_size=tokenizer.vocab_size, context_length=32, d_model=64, n_heads=4, n_layers=2
)
model = clearhead.GPT(shape)
print(f"{model.n_parameters():,} parameters")

ids = clearhead.text_to_token_ids("To be, or not to be, that is", tokenizer)  # [1, N]
print("ids", tuple(ids.shape), ids[0, :5].tolist(), "…")
logits = model(ids)  # [1, N, V]
print("logits", tuple(logits.shape))

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
model.train()
for step in range(101):
    logits = model(ids[:, :-1])  # [1, N - 1, V]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3d}  loss {loss.item():.3f}")

model.eval()
sampling = clearhead.SamplingConfig(temperature=0.0, max_new_tokens=20)
(completion,) = clearhead.generate(model, tokenizer, "To be,", sampling=sampling)
print(repr(f"To be,{completion.text}"))
