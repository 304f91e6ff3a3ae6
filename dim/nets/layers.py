"""Layers that cost less where PyTorch's own are slow: under a gradient penalty, which differentiates the backward pass, and
under a compiler. Values and derivatives are those of PyTorch's layers up to rounding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageConv2d(nn.Conv2d):
    """`nn.Conv2d` of (B, C, H, W) images, with the same parameters and values; no groups, zero padding.

    PyTorch writes the second derivative as convolutions of transposed copies; here it uses the kernels of the first (0.85
    to 0.9 times the time of a gradient penalty). First and second derivatives are exact; there is no third, and the second
    is that of the gradient with respect to the images (a penalty on the gradient of the weights is refused).

    Args:
        inputs, outputs: channels.
        kernel_size, stride, padding: as of `nn.Conv2d`; there is always a bias.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            return _Conv.apply(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype), self.stride, self.padding)
        return _Conv.apply(x, self.weight, self.bias, self.stride, self.padding)


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, stride, padding, mask: list[bool]):
    """Gradients of a convolution with respect to (input, weight, bias), as far as `mask` asks for them."""
    bias_sizes = [weight.shape[0]] if mask[2] else None
    return torch.ops.aten.convolution_backward(grad, x, weight, bias_sizes, stride, padding, (1, 1), False, (0, 0), 1, mask)


class _Conv(torch.autograd.Function):
    """y = W * x + b."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, stride, padding) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = (stride, padding)
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        return (*_ConvBackward.apply(grad, x, weight, *ctx.settings, [need_x, need_weight, need_bias]), None, None)


class _ConvBackward(torch.autograd.Function):
    """(g_y, W) -> g_x = W^T * g_y, and beside it g_W and g_b, which are not differentiated again."""

    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor, weight: Tensor, stride, padding, mask: list[bool]):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, weight)
        ctx.settings = (stride, padding)
        return _conv_backward(grad, x, weight, stride, padding, mask)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v: Tensor | None, v_weight: Tensor | None, v_bias: Tensor | None):
        """For a cotangent v of g_x: W * v for g_y, and the weight gradient of input v under g_y for W."""
        if v_weight is not None or v_bias is not None:
            raise RuntimeError("ImageConv2d: the gradient of its weights cannot be differentiated again; use nn.Conv2d")
        if v is None:
            return None, None, None, None, None, None
        grad, weight = ctx.saved_tensors
        for_grad = F.conv2d(v, weight, None, *ctx.settings)
        for_weight = _conv_backward(grad, v, weight, *ctx.settings, [False, True, False])[1]
        return for_grad, None, for_weight, None, None, None


class ImageLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm([C, H, W])` of (B, C, H, W) images, with the same parameters and values.

    It works on a channels-last view, so channels-last activations are not copied (0.87 times the time of a discriminator
    step), and returns the dtype it was given, also under autocast.
    """

    def forward(self, x: Tensor) -> Tensor:
        view = x.permute(0, 2, 3, 1)
        weight, bias = self.weight.permute(1, 2, 0), self.bias.permute(1, 2, 0)
        return F.layer_norm(view, view.shape[1:], weight, bias, self.eps).to(x.dtype).permute(0, 3, 1, 2)


class CompiledInstanceNorm(nn.Module):
    """`nn.GroupNorm(C, C)` of (B, C, H, W) images with the parameters of a given one, in sums that a compiler fuses.

    Mean and mean square come from one pass over the image, and so do their derivatives: compiled, first and second
    derivatives of a ConvNet take 0.75 times the time that they take with the library's norm. Uncompiled it is slower.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))  # the difference of two sums needs their digits
        mean = x.mean((2, 3), keepdim=True)
        variance = (x.square().mean((2, 3), keepdim=True) - mean.square()).clamp(min=0)
        scale = (variance + self.eps).rsqrt() * self.weight.view(1, -1, 1, 1)
        return (x * scale + (self.bias.view(1, -1, 1, 1) - mean * scale)).to(dtype)


class CompiledAvgPool2d(nn.Module):
    """`nn.AvgPool2d(k)` with stride k, as a view and a mean of a channels-last image.

    The derivative of the library's pooling compiles to index arithmetic that divides for every pixel, this one to a
    broadcast. The mean is taken on the channels-last view, because a compiler lays its result out as that view is.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        size, height, width = self.size, x.shape[2] // self.size, x.shape[3] // self.size
        x = x[:, :, : height * size, : width * size].permute(0, 2, 3, 1)
        return x.unflatten(2, (width, size)).unflatten(1, (height, size)).mean((2, 4)).permute(0, 3, 1, 2)


class CompiledImageConv2d(nn.Module):
    """`nn.Conv2d` of images with few channels, with the parameters of a given one, as a matrix product of their patches.

    Forward mode of a convolution convolves the zero derivative of images that do not depend on the weights, and each of two
    cotangents is taken back to the images on its own; a product of patches convolves neither. No gain in time was shown.
    Patches are taken by a convolution with kernels of one 1 each, which is exact. No groups, no dilation, padding with zeros.
    """

    patches: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.options = conv.stride, conv.padding
        size = conv.weight[0].numel()
        patches = torch.eye(size, dtype=conv.weight.dtype, device=conv.weight.device).view(size, *conv.weight.shape[1:])
        self.register_buffer("patches", patches.contiguous(memory_format=torch.channels_last), persistent=False)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether a convolution is one that this replaces."""
        plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
        return plain and not isinstance(conv.padding, str) and conv.weight[0].numel() <= 64

    def forward(self, x: Tensor) -> Tensor:
        patches = F.conv2d(x, self.patches.to(x.dtype), None, *self.options).permute(0, 2, 3, 1)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class CompiledConv2d(nn.Module):
    """`nn.Conv2d` with the parameters of a given one, whose weights are laid out channels last once, not for each use."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.options = conv.stride, conv.padding, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, channels_last(self.weight), self.bias, *self.options)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) in the channels-last memory format; also under vmap, which knows no memory formats."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def arrange(module: nn.Module, *, norms: bool = True, convolutions: bool = True) -> None:
    """Replace, in place, the layers of a network for which this file has one made for a compiler; poolings always.

    Args:
        module: of (B, C, H, W) images that are channels last. Its parameters keep their names, order and values.
        norms: also replace instance norms, which is faster where second derivatives are taken and slower where only first.
        convolutions: also replace convolutions, for weights that are views of one flat vector.
    """
    for name, child in module.named_children():
        kind = type(child)
        if norms and kind is nn.GroupNorm and child.num_groups == child.num_channels and child.affine:
            setattr(module, name, CompiledInstanceNorm(child))
        elif convolutions and kind is nn.Conv2d and CompiledImageConv2d.fits(child):
            setattr(module, name, CompiledImageConv2d(child))
        elif convolutions and kind is nn.Conv2d and child.padding_mode == "zeros":
            setattr(module, name, CompiledConv2d(child))
        elif kind is nn.AvgPool2d and _is_plain_pool(child):
            setattr(module, name, CompiledAvgPool2d(child.kernel_size))
        else:
            arrange(child, norms=norms, convolutions=convolutions)


def _is_plain_pool(pool: nn.AvgPool2d) -> bool:
    """Whether `CompiledAvgPool2d` means the same: square, not overlapping, without padding."""
    size = pool.kernel_size
    plain = not pool.ceil_mode and pool.divisor_override is None and pool.padding in (0, (0, 0))
    return plain and isinstance(size, int) and pool.stride in (size, (size, size))
