"""The perceiver layers that turn an embedding into tokens: IDFormer's and InstantID's, with the published key names."""

import torch
from torch import nn


class PerceiverAttention(nn.Module):
    """Latents look at a context and at themselves (Flamingo, arXiv 2204.14198, as open_flamingo writes it)."""

    def __init__(self, dim: int, head_dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_dim**-0.25
        inner = head_dim * heads
        self.norm1 = nn.LayerNorm(context_dim or dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(context_dim or dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, context: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """[n, places, context width] and [n, latents, width] in, [n, latents, width] out."""
        context, latents = self.norm1(context), self.norm2(latents)
        query = self._split(self.to_q(latents))
        key, value = map(self._split, self.to_kv(torch.cat((context, latents), 1)).chunk(2, -1))
        # Both sides scaled before the product: in 16 bits it stays finite.
        weights = ((query * self.scale) @ (key * self.scale).transpose(-2, -1)).float().softmax(-1).to(value.dtype)
        return self.to_out((weights @ value).transpose(1, 2).flatten(2))

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def feed_forward(dim: int, factor: int = 4) -> nn.Sequential:
    """Norm, up, GELU, down; the linear layers have no bias."""
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, dim * factor, bias=False), nn.GELU(), nn.Linear(dim * factor, dim, bias=False)
    )


def perceiver_layers(depth: int, dim: int, head_dim: int, heads: int) -> nn.ModuleList:
    """`depth` pairs of attention and feed-forward; each adds to the latents."""
    return nn.ModuleList(
        nn.ModuleList([PerceiverAttention(dim, head_dim, heads), feed_forward(dim)]) for _ in range(depth)
    )


class Resampler(nn.Module):
    """An embedding to tokens: InstantID's `image_proj`."""

    def __init__(
        self, dim: int, depth: int, head_dim: int, heads: int, num_queries: int, embedding_dim: int, output_dim: int
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = perceiver_layers(depth, dim, head_dim, heads)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """[n, places, embedding width] to [n, queries, output width]."""
        latents = self.latents.repeat(embedding.shape[0], 1, 1)
        context = self.proj_in(embedding)
        for attend, feed in self.layers:
            latents = attend(context, latents) + latents
            latents = feed(latents) + latents
        return self.norm_out(self.proj_out(latents))
