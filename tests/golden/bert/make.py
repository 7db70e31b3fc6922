"""Makes `outputs.json` by the package `transformers` (5.24.0), whose BERT has the weights of `tests.bert_weights`.

    pip install transformers && python -m tests.golden.bert.make

No test runs this file.
"""

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM

from tests.bert_weights import CONFIG, INPUT_IDS, MASK, weights

model = BertForMaskedLM(BertConfig(**CONFIG)).eval()
missing, unexpected = model.load_state_dict(weights(head=True), strict=False)
assert not unexpected and set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
with torch.no_grad():
    found = model(torch.tensor(INPUT_IDS), attention_mask=torch.tensor(MASK), output_hidden_states=True)
states, words = found.hidden_states[-1], torch.tensor(MASK)[:, :, None]
outputs = {
    "states": [own[: sum(mask)].tolist() for own, mask in zip(states, MASK, strict=True)],  # of the words alone
    "mean": ((states * words).sum(1) / words.sum(1)).tolist(),
    "mlm_logits": found.logits[:, 1].tolist(),  # of the second word
}
rounded = json.loads(json.dumps(outputs), parse_float=lambda text: round(float(text), 7))
Path(__file__).with_name("outputs.json").write_text(json.dumps(rounded) + "\n")
