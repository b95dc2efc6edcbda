"""CLIPs in PyTorch: a small one of open_clip's structure, ViT and ResNet; transformers' own where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F
from torch import nn

from infercam.engine.common.errors import MissingExtra
from infercam.export.clip import models
from infercam.export.clip.attention_pool import has_attention_pool
from infercam.export.clip.export import export_clip
from infercam.export.clip.models import Clip, load_clip, of_open_clip, of_transformers
from infercam.export.runtime import GraphSession

E, WIDTH = 8, 16


class Pool(nn.Module):
    """CLIP's AttentionPool2d, as published: the mean token asks, positions are added to keys, values and query."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, WIDTH))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.c_proj = nn.Linear(WIDTH, E)
        self.num_heads = 4

    def forward(self, x):
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x]) + self.positional_embedding[:, None]
        y, _ = F.multi_head_attention_forward(
            query=x[:1],
            key=x,
            value=x,
            embed_dim_to_check=WIDTH,
            num_heads=self.num_heads,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            use_separate_proj_weight=True,
            need_weights=False,
        )
        return y[0]


class Residual(nn.Module):
    def __init__(self, side: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 8, stride=8), nn.BatchNorm2d(WIDTH))
        self.attnpool = Pool(side)
        self.image_size = (32, 32)

    def forward(self, x):
        return self.attnpool(self.stem(x).relu())


class OpenClip(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.words = nn.Embedding(64, E)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_text(self, tokens):
        return self.words(tokens).mean(dim=1)


def tokenize(texts):
    rows = [[sum(map(ord, word)) % 64 for word in t.split()] for t in texts]
    return torch.tensor([[*(r + [0] * 7)[:7], 63] for r in rows])


@pytest.fixture
def clip() -> Clip:
    torch.manual_seed(0)
    return of_open_clip(OpenClip(Residual()), tokenize, "tiny")


NAMES, BACKGROUND, PROMPTS = ["cat", "dog"], ["sky"], ["a photo of a {}.", "the {}"]


def texts(clip):
    rows = []
    for name in (*NAMES, *BACKGROUND):
        each = [
            F.normalize(torch.from_numpy(clip.encode([p.replace("{}", name)]))[0], dim=0) for p in PROMPTS
        ]
        rows.append(F.normalize(torch.stack(each).mean(0), dim=0))
    return torch.stack(rows)


def test_a_residual_network_by_its_pools_projections(clip, tmp_path):
    assert has_attention_pool(clip.image) and clip.size == (32, 32)
    bundle = export_clip(clip, tmp_path / "b", names=NAMES, prompts=PROMPTS, background=BACKGROUND)
    m = bundle.manifest
    assert (m.method, m.decomposition, m.multi_label, m.stride) == ("attention-pool", "none", False, 8)
    assert (m.input.fixed_size, m.input.multiple, m.input.dynamic_batch) == (None, 8, True)
    assert m.source["prompts"] == PROMPTS and m.source["logit_scale"] == pytest.approx(np.exp(2.0))
    session = GraphSession(bundle.graph())
    t, scale = texts(clip), float(np.exp(2.0))
    visual, pool = clip.image, clip.image.attnpool
    for size in ((32, 32), (40, 64)):
        x = torch.randn(2, 3, *size)
        scores, response = session.run(x.numpy())
        with torch.no_grad():
            features = visual.stem(x).relu()
            values = F.conv2d(features, pool.v_proj.weight[..., None, None], pool.v_proj.bias)
            dense = F.conv2d(values, pool.c_proj.weight[..., None, None], pool.c_proj.bias)
            logits = scale * torch.einsum("nehw,ke->nkhw", F.normalize(dense, dim=1), t)
            np.testing.assert_allclose(response, logits.softmax(1)[:, :2].numpy(), rtol=1e-4, atol=1e-5)
            if size == (32, 32):  # the published pool takes no other
                want = scale * F.normalize(visual(x), dim=1) @ t[:2].T
                np.testing.assert_allclose(scores, want.numpy(), rtol=1e-4, atol=1e-4)
    assert clip.image.attnpool is pool


def test_a_transformer_of_transformers(tmp_path):
    """CLIPModel with a tiny configuration and random weights: scores and the value path by its own modules."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**common, "image_size": 32, "patch_size": 8},
        text_config={**common, "vocab_size": 64, "max_position_embeddings": 8, "eos_token_id": 63},
        projection_dim=E,
    )
    config._attn_implementation = "eager"
    model = transformers.CLIPModel(config).float().eval()
    clip = of_transformers(model, lambda ts: {"input_ids": tokenize(ts)})
    bundle = export_clip(clip, tmp_path / "b", names=NAMES, prompts=PROMPTS, background=BACKGROUND)
    m = bundle.manifest
    assert (m.method, m.stride, m.input.multiple) == ("maskclip", 8, 8)
    x = torch.randn(2, 3, 32, 32)
    scores, response = GraphSession(bundle.graph()).run(x.numpy())
    t = texts(clip)
    vision = model.vision_model
    with torch.no_grad():
        want = clip.scale * F.normalize(clip.image(x), dim=1) @ t[:2].T
        y = vision.pre_layrnorm(vision.embeddings(x))
        first, last = vision.encoder.layers
        y = first(y, None)
        y = y[0] if isinstance(y, tuple) else y
        z = last.layer_norm1(y)
        y = y + last.self_attn.out_proj(last.self_attn.v_proj(z))
        y = y + last.mlp(last.layer_norm2(y))
        dense = model.visual_projection(vision.post_layernorm(y[:, 1:]))
        chances = (clip.scale * F.normalize(dense, dim=-1) @ t.T).softmax(-1)[..., :2]
    np.testing.assert_allclose(scores, want.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        response, chances.transpose(1, 2).reshape(2, 2, 4, 4).numpy(), rtol=1e-3, atol=1e-4
    )


def test_preprocessing_as_the_folder_says(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    assert models._pixels(file) == {}
    file.write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.5], "size": 224}')
    assert models._pixels(file) == {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.5)}
    file.write_text('{"image_mean": "no", "image_std": 1}')
    assert models._pixels(file) == {}


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingExtra, match=r"infercam\[clip\]"):
        load_clip(str(tmp_path), None)
    with pytest.raises(MissingExtra, match=r"infercam\[clip\]"):
        load_clip("ViT-B-32", tmp_path / "config.json")
