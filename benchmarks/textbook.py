"""ALBEF written plainly: oracle of the tests, and baseline of the benchmarks.

The procedure of the original's pre-training step and of its ranking, as one would write it from the paper: every
attention spelt out, every pass over the image with keys and values of its own, words padded to the longest, the whole
vocabulary at every position, loops where the original has loops. It computes what `PretrainObjective` and `ranking`
compute; how fast it does so is what they are compared with.
"""

# B pairs, L words, S image tokens, D width, E embed_dim, Q queue, V vocabulary, k candidates

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from albef.models.albef import AlbefModel
from albef.models.config import AlbefConfig
from albef.models.names import official_names, to_official
from albef.objectives.pretrain import PretrainObjective
from albef.recipe import Optim

Batch = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]
HIDDEN = -10000.0  # what is added to the score of a word that must not be read


class ImageBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        probabilities = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # [B, H, S, S]
        x = x + self.proj((probabilities @ v).transpose(1, 2).reshape(rows, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ImageEncoder(nn.Module):
    """[B, 3, height, width] -> [B, S, D]."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.image_tokens, width))
        self.blocks = nn.ModuleList(ImageBlock(width, config.vision_heads) for _ in range(config.vision_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Attention(nn.Module):
    """BERT's attention over words or image tokens, with residual and norm."""

    def __init__(self, config: AlbefConfig, seen_width: int) -> None:
        super().__init__()
        width, self.heads = config.text_width, config.text_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(seen_width, width)
        self.value = nn.Linear(seen_width, width)
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        """`mask` [B, 1, 1, seen] is added to the scores."""
        q, k, v = self.split(self.query(x)), self.split(self.key(seen)), self.split(self.value(seen))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask  # [B, H, L, seen]
        read = self.dropout(scores.softmax(-1)) @ v
        return self.norm(x + self.dropout(self.dense(read.transpose(1, 2).reshape(x.shape))))

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Layer(nn.Module):
    def __init__(self, config: AlbefConfig, fusion: bool) -> None:
        super().__init__()
        self.attention = Attention(config, config.text_width)
        if fusion:
            self.crossattention = Attention(config, config.vision_width)
        self.fc1 = nn.Linear(config.text_width, config.text_intermediate)
        self.fc2 = nn.Linear(config.text_intermediate, config.text_width)
        self.norm = nn.LayerNorm(config.text_width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, image: Tensor | None) -> Tensor:
        x = self.attention(x, x, mask)
        if image is not None:
            everything = torch.zeros(len(x), 1, 1, image.shape[1], device=x.device)  # images are never padded
            x = self.crossattention(x, image, everything)
        return self.norm(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class Bert(nn.Module):
    """One BERT: the lower layers read words alone, the upper ones the image too."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.lower = config.text_layers
        self.word_embeddings = nn.Embedding(config.vocab_size, config.text_width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.text_width)
        self.token_type_embeddings = nn.Embedding(2, config.text_width)
        self.norm = nn.LayerNorm(config.text_width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        count = config.text_layers + config.fusion_layers
        self.layers = nn.ModuleList(Layer(config, fusion=index >= self.lower) for index in range(count))

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Words [B, L] -> states [B, L, D]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        kinds = torch.zeros_like(input_ids)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions) + self.token_type_embeddings(kinds)
        x = self.dropout(self.norm(x))
        for layer in self.layers[: self.lower]:
            x = layer(x, added(attention_mask), None)
        return x

    def fuse(self, states: Tensor, attention_mask: Tensor, image: Tensor) -> Tensor:
        """States [B, L, D] with the image tokens [B, S, Dv] of each -> fused states [B, L, D]."""
        for layer in self.layers[self.lower :]:
            states = layer(states, added(attention_mask), image)
        return states


def added(attention_mask: Tensor) -> Tensor:
    return (1.0 - attention_mask[:, None, None].float()) * HIDDEN


class Vocabulary(nn.Module):
    """Logits of every word of the vocabulary; the decoder is the word embedding."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.text_width, config.text_width)
        self.norm = nn.LayerNorm(config.text_width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(states))), word_embeddings, self.bias)


class Network(nn.Module):
    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = ImageEncoder(config)
        self.bert = Bert(config)
        self.mlm_head = Vocabulary(config)
        self.vision_proj = nn.Linear(config.vision_width, config.embed_dim)
        self.text_proj = nn.Linear(config.text_width, config.embed_dim)
        self.itm_head = nn.Linear(config.text_width, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image tokens [B, S, Dv], text states [B, L, D], unit vectors [B, E] of both."""
        image = self.visual_encoder(batch["pixel_values"])
        text = self.bert.read(batch["input_ids"], batch["attention_mask"])
        z_image, z_text = self.vision_proj(image[:, 0]), self.text_proj(text[:, 0])
        return image, text, F.normalize(z_image, dim=-1), F.normalize(z_text, dim=-1)

    def words(self, input_ids: Tensor, attention_mask: Tensor, image: Tensor) -> Tensor:
        """Logits of every word at every position, [B, L, V]."""
        fused = self.bert.fuse(self.bert.read(input_ids, attention_mask), attention_mask, image)
        return self.mlm_head(fused, self.bert.word_embeddings.weight)


class Textbook(nn.Module):
    """The pre-training step, with teacher and queues: `(batch, alpha) -> {"itc": .., "itm": .., "mlm": ..}`.

    It starts from weights, teacher and queues of `ours`. A test may give the drawn `negatives` (images for the texts,
    texts for the images; [B] each) and the `masked` words (ids and labels, [B, L] each).
    """

    def __init__(self, ours: PretrainObjective) -> None:
        super().__init__()
        self.network = network_of(ours.model)
        self.teacher = deepcopy(self.network).requires_grad_(False)
        self.teacher.load_state_dict(translate(ours.teacher.model.state_dict(), ours.model.config))
        self.register_buffer("image_queue", ours.queue.image_queue.T.clone())
        self.register_buffer("text_queue", ours.queue.text_queue.T.clone())
        self.pointer = int(ours.queue.pointer)
        self.momentum, self.mlm_probability = ours.teacher.momentum, ours.mlm_probability
        self.mask_id, self.cls_id = ours.mask_id, ours.cls_id

    image_queue: Tensor  # [E, Q]
    text_queue: Tensor  # [E, Q]

    def forward(
        self, batch: Batch, alpha: float, negatives: Pair | None = None, masked: Pair | None = None
    ) -> dict[str, Tensor]:
        network, mask, size = self.network, batch["attention_mask"], len(batch["input_ids"])
        with torch.no_grad():
            network.temp.clamp_(0.001, 0.5)
        # Align
        image, text, z_image, z_text = network.encode(batch)
        with torch.no_grad():
            self.follow()
            image_t, _, z_image_t, z_text_t = self.teacher.encode(batch)
            images = torch.cat([z_image_t.T, self.image_queue.clone()], dim=1)  # [E, B + Q]
            texts = torch.cat([z_text_t.T, self.text_queue.clone()], dim=1)
            hard = torch.zeros(size, images.shape[1], device=image.device).fill_diagonal_(1)
            targets_i2t = alpha * (z_image_t @ texts / network.temp).softmax(1) + (1 - alpha) * hard
            targets_t2i = alpha * (z_text_t @ images / network.temp).softmax(1) + (1 - alpha) * hard
        logits_i2t, logits_t2i = z_image @ texts / network.temp, z_text @ images / network.temp
        loss_i2t = -(logits_i2t.log_softmax(1) * targets_i2t).sum(1).mean()
        loss_t2i = -(logits_t2i.log_softmax(1) * targets_t2i).sum(1).mean()
        self.remember(z_image_t, z_text_t)
        # Match
        positive = network.bert.fuse(text, mask, image)
        image_n, text_n = draw(logits_i2t[:, :size], logits_t2i[:, :size]) if negatives is None else negatives
        other_images = torch.stack([image[index] for index in image_n.tolist()])
        other_texts = torch.stack([text[index] for index in text_n.tolist()])
        other_masks = torch.stack([mask[index] for index in text_n.tolist()])
        negative = network.bert.fuse(
            torch.cat([text, other_texts]), torch.cat([mask, other_masks]), torch.cat([other_images, image])
        )
        matched = network.itm_head(torch.cat([positive[:, 0], negative[:, 0]]))
        labels = torch.cat([torch.ones(size), torch.zeros(2 * size)]).long().to(image.device)
        # Fill in
        input_ids, wanted = self.mask_words(batch["input_ids"], mask) if masked is None else masked
        with torch.no_grad():
            likely = self.teacher.words(input_ids, mask, image_t).softmax(-1)  # [B, L, V]
        logits = network.words(input_ids, mask, image)
        told = F.cross_entropy(logits.view(-1, logits.shape[-1]), wanted.view(-1), ignore_index=-100)
        taught = -(logits.log_softmax(-1) * likely).sum(-1)[wanted != -100].mean()
        return {
            "itc": (loss_i2t + loss_t2i) / 2,
            "itm": F.cross_entropy(matched, labels),
            "mlm": (1 - alpha) * told + alpha * taught,
        }

    @torch.no_grad()
    def follow(self) -> None:
        """The teacher's weights go a little way towards the student's."""
        for slow, fast in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            slow.data = slow.data * self.momentum + fast.data * (1 - self.momentum)

    @torch.no_grad()
    def remember(self, z_image: Tensor, z_text: Tensor) -> None:
        """The oldest columns of the queues make room. ValueError unless batches fill a queue exactly, as there."""
        size, length = len(z_image), self.image_queue.shape[1]
        if length % size:
            raise ValueError(f"a queue of {length} is not a multiple of the batch, {size}; choose one that is")
        self.image_queue[:, self.pointer : self.pointer + size] = z_image.T
        self.text_queue[:, self.pointer : self.pointer + size] = z_text.T
        self.pointer = (self.pointer + size) % length

    def mask_words(self, input_ids: Tensor, attention_mask: Tensor) -> Pair:
        """Ids with words hidden, and what they were, -100 elsewhere: [B, L] each."""
        ids, device = input_ids.clone(), input_ids.device
        chosen = torch.bernoulli(torch.full(ids.shape, self.mlm_probability)).bool().to(device)
        chosen &= (attention_mask == 1) & (ids != self.cls_id)
        wanted = torch.where(chosen, ids, -100)
        hidden = torch.bernoulli(torch.full(ids.shape, 0.8)).bool().to(device) & chosen
        ids[hidden] = self.mask_id
        random = torch.bernoulli(torch.full(ids.shape, 0.5)).bool().to(device) & chosen & ~hidden
        ids[random] = torch.randint(self.network.config.vocab_size, ids.shape).to(device)[random]
        return ids, wanted


def draw(logits_i2t: Tensor, logits_t2i: Tensor) -> Pair:
    """A hard negative image for each text and a hard negative text for each image, one after the other."""
    with torch.no_grad():
        weights_i2t, weights_t2i = logits_i2t.float().softmax(1), logits_t2i.float().softmax(1)
        weights_i2t.fill_diagonal_(0)
        weights_t2i.fill_diagonal_(0)
        images = [int(torch.multinomial(weights_t2i[row], 1).item()) for row in range(len(weights_t2i))]
        texts = [int(torch.multinomial(weights_i2t[row], 1).item()) for row in range(len(weights_i2t))]
    return torch.tensor(images), torch.tensor(texts)


def make_optimizer(textbook: Textbook, optim: Optim) -> torch.optim.AdamW:
    """AdamW that goes through the parameters one by one; biases and norms aren't decayed."""
    named = list(textbook.network.named_parameters())
    plain = [p for name, p in named if p.ndim == 1 or name.endswith(".bias")]
    decayed = [p for name, p in named if p.ndim != 1 and not name.endswith(".bias")]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": optim.weight_decay}]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, foreach=False, fused=False)


@torch.no_grad()
def rank(network: Network, image: Tensor, z_image: Tensor, text: Tensor, mask: Tensor, z_text: Tensor, k: int) -> Pair:
    """Matching logits of the k likeliest by cosine, image->text [I, T] and text->image [T, I]; -100 elsewhere.

    Tokens [I, S, Dv] and states [T, L, D] of everything. Each direction fuses its own pairs, whole and padded.
    """
    cosines = z_image @ z_text.T
    to_text, to_image = torch.full_like(cosines, -100.0), torch.full_like(cosines.T, -100.0)
    for index, row in enumerate(cosines):
        best = row.topk(k).indices
        to_text[index, best] = score(network, text[best], mask[best], image[index].repeat(k, 1, 1))
    for index, row in enumerate(cosines.T):
        best = row.topk(k).indices
        to_image[index, best] = score(network, text[index].repeat(k, 1, 1), mask[index].repeat(k, 1), image[best])
    return to_text, to_image


def score(network: Network, text: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """The matching logit of each pair: states [k, L, D], image tokens [k, S, Dv] -> [k]."""
    return network.itm_head(network.bert.fuse(text, mask, image)[:, 0])[:, 1].float()


def network_of(model: AlbefModel) -> Network:
    """Our model's weights in a network of this file, on the same device."""
    network = Network(model.config).to(model.device, model.temp.dtype)
    network.load_state_dict(translate(model.state_dict(), model.config))
    return network


SHORTER = (
    (r"text_encoder\.cls\.predictions\.(transform\.)?", "mlm_head."),
    (r"text_encoder\.bert\.(embeddings\.)?", "bert."),
    (r"encoder\.layer\.", "layers."),
    (r"attention\.(self|output)\.", "attention."),
    (r"attn\.|mlp\.", ""),
    (r"intermediate\.dense", "fc1"),
    (r"output\.dense", "fc2"),
    (r"(output\.)?LayerNorm", "norm"),
    (r"patch_embed\.proj", "patch_embed"),
)


def translate(state: Mapping[str, Tensor], config: AlbefConfig) -> dict[str, Tensor]:
    """Tensors (weights, gradients) under our names -> under those of `Network`, which are the original's, shortened."""
    official = to_official(state, config)
    once = {name for names in official_names(config).values() for name in names}  # no tied copies
    return {reduce(lambda short, rule: re.sub(*rule, short), SHORTER, name): official[name] for name in once}
