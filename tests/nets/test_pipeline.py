"""Pretrained pipelines: the images of diffusers' own pipeline, whatever the data's size and colours; refusals in one line."""

import json
import shutil

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DiTPipeline

import dim
from dim.config import DataConfig, GeneratorConfig, ProtocolConfig
from dim.errors import InputError
from dim.io import load_tensors
from dim.nets.generator import build_generator
from dim.nets.generator_file import load_generator_file, save_generator_file
from dim.nets.generators.pipeline import fit_images
from dim.nets.pretrained import open_pipeline, to_ddim


def config_of(folder, **options) -> GeneratorConfig:
    return GeneratorConfig(**{"name": "pipeline", "pretrained": str(folder), "steps": 3, **options})


@pytest.fixture(scope="module")
def folder(pretrained, tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("pretrained") / "tiny-dit")


@pytest.fixture(scope="module")
def net(folder, spec):
    return build_generator(config_of(folder, guidance=2.0), spec(3, 8, 3), seed=0).eval()


# --- the images of diffusers' own pipeline ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "guidance", "scheduler"),
    [
        (4, 1.0, DDIMScheduler(clip_sample=False)),
        (4, 3.0, DDIMScheduler(clip_sample=False)),
        (2, 1.5, DDIMScheduler(clip_sample=True, prediction_type="v_prediction")),
        (1, 2.0, DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="sample")),
        (10, 2.0, DDPMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2", variance_type="learned_range")),
    ],
)
def test_images_are_those_of_diffusers_own_pipeline(pretrained, spec, tmp_path, steps, guidance, scheduler):
    """With a thousand classes, since DiTPipeline's class for none is number 1000 whatever the network has."""
    folder = pretrained(tmp_path / "dit", num_embeds_ada_norm=1000, scheduler=scheduler)
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    labels = [207, 3, 999, 207]
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
    expected = pipeline(labels, generator=torch.Generator().manual_seed(5), **options).images * 2 - 1

    config = config_of(folder, steps=steps, guidance=guidance, pretrained_classes=(3, 207, 999))
    net = build_generator(config, spec(3, 8, 3), seed=0).eval()
    z = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(5)).flatten(1)
    with torch.no_grad():
        images = net(z, torch.tensor([1, 0, 2, 1]))
        others = net(z, torch.tensor([0, 1, 0, 2]))
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
    assert (images.abs() < 1).float().mean() > 0.9, "the comparison should not rest on the clamp"
    assert float((images - others).abs().amax()) > 1e-3, "nor on a network that ignores the class"


def test_a_unet_takes_the_steps_of_ddim(pretrained, spec, tmp_path):
    """Song et al. 2021, eq. 12 with sigma 0, written out in float64."""
    net = build_generator(config_of(pretrained(tmp_path / "unet", kind="unet"), steps=4), spec(3, 8, 3), seed=0).eval().double()
    levels = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32), 0).double()
    z, y = torch.randn(3, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.tensor([2, 0, 1])
    x = z.view(3, 4, 4, 4)
    with torch.no_grad():
        for time in (750, 500, 250, 0):
            noise = net.denoiser(x, torch.full((3,), time), y).sample
            now, then = levels[time], levels[time - 250] if time >= 250 else torch.ones(())
            x = then.sqrt() * (x - (1 - now).sqrt() * noise) / now.sqrt() + (1 - then).sqrt() * noise
        expected = net.vae.decode(x / 0.5).sample
        torch.testing.assert_close(net(z, y), expected.clamp(-1, 1), rtol=1e-5, atol=1e-6)


def test_a_scheduler_that_cannot_clip_does_not_begin_to():
    assert not to_ddim(diffusers.DPMSolverMultistepScheduler()).config.clip_sample
    assert to_ddim(DDPMScheduler(clip_sample=True)).config.clip_sample
    assert to_ddim(diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")).config.timestep_spacing == "trailing"


def test_learned_variances_are_left_out(net, folder):
    assert net.denoiser.config.out_channels == 8
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    times, classes = torch.tensor([3, 900]), torch.tensor([1, 2])
    with torch.no_grad():
        whole = net.denoiser(x, times, classes).sample
        torch.testing.assert_close(net.predict(x, times, classes), whole[:, :4])


def test_a_call_leaves_no_state_behind(net):
    """Blocks of a set run side by side in threads, and a scheduler holds its steps: calls must not share one."""
    before = vars(net.scheduler).copy()
    net(torch.zeros(2, 64), torch.tensor([0, 1]))
    assert all(value is before[name] for name, value in vars(net.scheduler).items())
    assert net.scheduler.num_inference_steps is None


def test_training_mode_draws_nothing_from_the_global_state(net):
    """DiT's own label dropout would, and dropout layers."""
    z, y = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    state = torch.get_rng_state()
    try:
        with torch.no_grad():
            assert torch.equal(net.train()(z, y), net.eval()(z, y))
        assert net.train().training
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        net.eval()


# --- sizes and colours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 12), (1, (6, 10)), (3, 4)])
@pytest.mark.parametrize("grey", [False, True])
def test_every_size_and_colour(pretrained, spec, tmp_path, channels, size, grey):
    data = spec(channels, size, 3)
    net = build_generator(config_of(pretrained(tmp_path / "p", grey=grey)), data, seed=0)
    images = net.sample(torch.tensor([0, 1, 2]))
    assert images.shape == (3, *data.image_shape)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    if grey and channels == 3:
        assert torch.equal(images[:, 0], images[:, 1])
    latents = net.encode(images, torch.Generator().manual_seed(0))
    assert latents.shape == (3, 4, 4, 4)
    assert latents.isfinite().all()


def test_colours_become_luma_and_large_images_are_averaged():
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]).view(4, 3, 1, 1).expand(-1, -1, 4, 4)
    grey = fit_images(colours, (1, 2, 2))
    assert grey.shape == (4, 1, 2, 2)
    torch.testing.assert_close(grey[:, 0, 0, 0], torch.tensor([0.299, 0.587, 0.114, 1.0]))
    stripes = -torch.ones(1, 1, 32, 32)
    stripes[..., 3::8] = stripes[..., 4::8] = 1  # bright where four points across would be taken, dark between them
    assert fit_images(stripes, (3, 4, 4)).max() < 0
    assert torch.equal(fit_images(stripes, (1, 32, 32)), stripes)


def test_a_real_image_is_encoded_at_its_latents_scale(net):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        spread = net.vae.encode(images).latent_dist
    draws = torch.stack([net.encode(images, torch.Generator().manual_seed(seed)) for seed in range(400)])
    torch.testing.assert_close(draws.mean(0), spread.mean * 0.5, atol=0.15, rtol=0)
    torch.testing.assert_close(draws.std(0), spread.std * 0.5, atol=0, rtol=0.2)


def test_latents_that_are_shifted(pretrained, spec, tmp_path):
    folder = pretrained(tmp_path / "p")
    file = folder / "vae" / "config.json"
    plain = build_generator(config_of(folder), spec(3, 8, 3), seed=0).eval()
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"shift_factor": 0.25}))
    shifted = build_generator(config_of(folder), spec(3, 8, 3), seed=0).eval()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = [net.encode(images, torch.Generator().manual_seed(1)) for net in (plain, shifted)]
    torch.testing.assert_close(codes[1], codes[0] - 0.25 * 0.5)
    z, y = torch.randn(2, plain.latent_dim, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1])
    assert not torch.equal(plain(z, y), shifted(z, y))
    file.write_text(json.dumps(said | {"latents_mean": [0.0] * said["latent_channels"]}))
    refused("latents_mean or latents_std", config_of(folder), spec(3, 8, 3))


# --- gradients -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transformer", "unet"])
def test_gradients_through_the_sampler(pretrained, spec, tmp_path, kind):
    """In latents and in a weight, in float64 against finite differences, through resizing and colours."""
    folder = pretrained(tmp_path / "p", kind=kind)
    guidance = 2.0 if kind == "transformer" else 1.0
    net = build_generator(config_of(folder, steps=2, guidance=guidance), spec(1, 6, 3), seed=0).double()
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    name = "denoiser." + ("proj_out_2.bias" if kind == "transformer" else "conv_out.bias")
    bias = dict(net.named_parameters())[name].detach()[:4].clone().requires_grad_()
    y, target = torch.tensor([0, 2]), torch.zeros(2, 1, 6, 6, dtype=torch.float64)

    def loss(z, bias):
        rest = dict(net.named_parameters())[name].detach()[4:]
        images = torch.func.functional_call(net, {name: torch.cat((bias, rest))}, (z, y))
        return F.mse_loss(images, target)

    assert torch.autograd.gradcheck(loss, (z, bias))


def test_only_the_denoiser_is_trained(net):
    trained = {name.partition(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {"denoiser"}
    assert all(parameter.requires_grad for parameter in net.denoiser.parameters())


# --- sets ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transformer", "unet"])
def test_sets_are_nested(pretrained, spec, tmp_path, kind):
    """Bitwise, whatever the number of threads and the company."""
    net = build_generator(config_of(pretrained(tmp_path / "p", kind=kind)), spec(3, 8, 3), seed=0)
    labels, indices = torch.arange(3).repeat_interleave(12), torch.arange(12).repeat(3)
    together = net.images(labels, indices, seed=4)
    assert len(torch.unique(together, dim=0)) == 36
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            order = torch.randperm(36, generator=torch.Generator().manual_seed(count))
            for subset in (order, order[:20], order[:1]):
                assert torch.equal(net.images(labels[subset], indices[subset], seed=4), together[subset])
    finally:
        torch.set_num_threads(threads)


def test_the_sampler_has_options(folder, spec):
    net = build_generator(config_of(folder), spec(3, 8, 3), seed=0)
    labels = torch.tensor([0, 1, 2])
    first = net.sample(labels)
    assert net.sampler == {"steps": 3, "guidance": 1.0}
    changed = [net.configure(**options).sample(labels) for options in ({"steps": 5}, {"guidance": 3.0})]
    assert net.sampler == {"steps": 5, "guidance": 3.0}
    assert not torch.equal(first, changed[0])
    assert not torch.equal(*changed)
    assert torch.equal(net.configure(steps=3, guidance=1).sample(labels), first)
    for options, message in (
        ({"steps": 1}, r"steps is 1: .*'leading' begins at time 0 of 1000.*expected 2 to 999"),
        ({"steps": 1001}, r"steps is 1001: .*expected 2 to 999"),
        ({"steps": 0}, "steps is 0: expected at least 1"),
        ({"scheduler": "heun"}, "unknown sampler option scheduler.*it has steps, guidance"),
    ):
        with pytest.raises(InputError, match=message):
            net.configure(**options)
        assert net.sampler == {"steps": 3, "guidance": 1.0}, "what is refused changes nothing"


# --- files -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch):
    """Any question to the Hub fails the test."""

    def refuse(*_, **__):
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", refuse)
    monkeypatch.setattr("diffusers.utils.hub_utils.hf_hub_download", refuse)


@pytest.mark.parametrize("kind", ["transformer", "unet"])
def test_a_file_needs_neither_the_folder_nor_the_hub(pretrained, spec, tmp_path, no_hub, kind):
    scheduler = DDPMScheduler(clip_sample=False, prediction_type="v_prediction", beta_end=0.01, timestep_spacing="trailing")
    net = {"sample_size": 6, "num_class_embeds": 5} if kind == "unet" else {"num_embeds_ada_norm": 5}
    folder = pretrained(tmp_path / "somewhere" / "tiny", kind=kind, scheduler=scheduler, **net)
    config = config_of(folder, steps=2, pretrained_classes=(4, 0, 2))
    original = build_generator(config, spec(1, 8, 3), seed=0).eval()
    path = tmp_path / "generator.safetensors"
    save_generator_file(path, original, config=config, data=DataConfig(), protocol=ProtocolConfig(), about={})
    shutil.rmtree(folder)
    loaded = load_generator_file(path)
    labels = torch.tensor([0, 1, 2, 0])
    # PyTorch multiplies by weights that require gradients in another order, which rounds otherwise.
    original = original.to(memory_format=torch.channels_last).requires_grad_(False)
    assert torch.equal(loaded.sample(labels, seed=1), original.sample(labels, seed=1))
    assert loaded.sampler == original.sampler
    assert loaded.architecture() == json.loads(json.dumps(original.architecture()))
    assert loaded.info["generator"]["pretrained"] == "tiny"
    assert b"somewhere" not in path.read_bytes(), "where the pipeline lay is nobody's business"
    loaded.info["about"] = {"title": "tiny", "step": 0, "total_steps": 0}
    again = dim.load_generator(dim.save_pretrained(loaded, tmp_path / "export"))
    assert torch.equal(again.sample(labels, seed=1), loaded.sample(labels, seed=1))
    assert load_tensors(tmp_path / "export" / "generator.safetensors")[1]["architecture"] == loaded.architecture()


@pytest.mark.parametrize("kind", ["transformer", "unet"])
def test_weights_have_memory_of_their_own(pretrained, spec, tmp_path, kind):
    """Slices of a file lie at any address, and kernels round by alignment."""
    net = build_generator(config_of(pretrained(tmp_path / "tiny", kind=kind)), spec(3, 8, 3), seed=0)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert {name: tensor.data_ptr() % 64 for name, tensor in tensors.items() if tensor.data_ptr() % 64} == {}


def test_a_hub_id_is_kept(folder, spec, tmp_path):
    net = build_generator(config_of(folder), spec(3, 8, 3), seed=0)
    path = tmp_path / "g.safetensors"
    for name in ("owner/name", "hub:owner/name"):
        config = config_of(name)
        save_generator_file(path, net, config=config, data=DataConfig(), protocol=ProtocolConfig(), about={})
        assert load_generator_file(path).info["generator"]["pretrained"] == name


def test_a_transformer_under_its_former_name_is_read(pretrained, spec, tmp_path):
    """As DiT's published pipelines call it."""
    folder = pretrained(tmp_path / "p")
    expected = build_generator(config_of(folder), spec(3, 8, 3), seed=0).sample([0, 1, 2])
    for file in (folder / "model_index.json", folder / "transformer" / "config.json"):
        file.write_text(file.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": {"0": "one", "1": "two"}}))
    assert torch.equal(build_generator(config_of(folder), spec(3, 8, 3), seed=0).sample([0, 1, 2]), expected)


# --- refusals --------------------------------------------------------------------------------------------------------------


def refused(message, config, data):
    with pytest.raises(InputError, match=message) as caught:
        build_generator(config, data, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "nothing", "a/b/c", "~/nothing"])
def test_a_folder_that_is_missing_is_refused_without_the_hub(spec, no_hub, name):
    message = f"no run, folder or file '{name}': expected a folder of a diffusers pipeline .generator.pretrained."
    refused(message, config_of(name), spec(3, 8, 3))


def test_what_the_hub_does_not_give_is_refused(spec, monkeypatch):
    def fail(*_, **__):
        raise OSError("no such repository\nand much more")

    for name in ("owner/name", "hub:owner/name"):
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.get_hf_file_metadata", fail)
            refused(r"the Hub does not answer for pipeline 'owner/name' \(no such repository\)", config_of(name), spec())
            patch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
            patch.setattr("diffusers.DiffusionPipeline.load_config", fail)
            refused(r"model_index.json of pipeline 'owner/name' cannot be used \(no such repository\)", config_of(name), spec())


def test_a_pipeline_must_be_named(spec):
    refused("generator.pretrained is None: name the folder", GeneratorConfig(name="pipeline"), spec())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"unet": ["diffusers", "UNet2DConditionModel"], "transformer": None},
            "has .*unet UNet2DConditionModel: expected a class",
        ),
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, "has .*text_encoder CLIPTextModel.*: expected a class-conditional"),
        ({"vae": ["diffusers", "VQModel"]}, "vae VQModel"),
        ({"scheduler": ["mine", "MyScheduler"]}, "scheduler of pipeline .*diffusers has no scheduler MyScheduler"),
        ({"scheduler": [None, None]}, "expected a class-conditional one"),
        ({"vae": None, "scheduler": None, "transformer": None}, "has no components: expected"),
    ],
)
def test_pipelines_of_other_kinds_are_refused(folder, spec, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "p")
    file = tmp_path / "p" / "model_index.json"
    file.write_text(json.dumps({k: v for k, v in (json.loads(file.read_text()) | change).items() if v is not None}))
    refused(message, config_of(tmp_path / "p"), spec(3, 8, 3))


def test_a_folder_that_holds_something_else_is_refused(spec, tmp_path):
    refused(r"model_index.json of pipeline .* cannot be used", config_of(tmp_path), spec(3, 8, 3))


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_damaged_and_missing_weights_are_refused(folder, spec, tmp_path, part):
    shutil.copytree(folder, tmp_path / "p")
    file = tmp_path / "p" / part / "diffusion_pytorch_model.safetensors"
    message = f"the {part} of pipeline .* cannot be used .*expected a diffusers pipeline with weights in .safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(message, config_of(tmp_path / "p"), spec(3, 8, 3))
    from safetensors.torch import load, save

    file.write_bytes(save(dict(list(load(whole).items())[1:]), metadata={"format": "pt"}))
    refused(f"the {part} of pipeline .* lacks the weights", config_of(tmp_path / "p"), spec(3, 8, 3))
    file.unlink()
    refused(message, config_of(tmp_path / "p"), spec(3, 8, 3))


def test_pickled_weights_are_not_read(folder, spec, tmp_path):
    shutil.copytree(folder, tmp_path / "p")
    weights = open_pipeline(str(folder)).vae.state_dict()
    (tmp_path / "p" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, tmp_path / "p" / "vae" / "diffusion_pytorch_model.bin")
    refused("the vae of pipeline .*weights in .safetensors files", config_of(tmp_path / "p"), spec(3, 8, 3))


@pytest.mark.parametrize(
    "scheduler", [diffusers.FlowMatchEulerDiscreteScheduler(), diffusers.ScoreSdeVeScheduler()], ids=["flow", "exploding"]
)
def test_schedulers_of_other_noise_are_refused(pretrained, spec, tmp_path, scheduler):
    refused(
        "scheduler of pipeline .*no DDIM form.*save the pipeline with a DDIMScheduler",
        config_of(pretrained(tmp_path / "p", scheduler=scheduler)),
        spec(3, 8, 3),
    )


@pytest.mark.parametrize("chosen", [(), (0, 1), (0, 1, 2, 3, 3), (0, 1, 2, 3, 5), (-1, 0, 1, 2, 3)])
def test_classes_that_do_not_match_are_refused(pretrained, spec, tmp_path, chosen):
    folder = pretrained(tmp_path / "p", num_embeds_ada_norm=5 if chosen else 3)
    message = r"pretrained_classes is \[.*\]: pipeline .* has [35] classes, toy 5; give 5 different numbers from 0 to [24]"
    refused(message, config_of(folder, pretrained_classes=chosen), spec(3, 8, 5))


def test_networks_that_cannot_be_used_are_refused(pretrained, spec, tmp_path):
    data = spec(3, 8, 3)
    unet = pretrained(tmp_path / "u", kind="unet")
    refused("guidance is 2.0: this pipeline has no class for 'none'; expected 1", config_of(unet, guidance=2.0), data)
    with pytest.raises(InputError, match=r"guidance is 3\.0: this pipeline"):
        build_generator(config_of(unet), data, seed=0).configure(guidance=3.0)
    plain = pretrained(tmp_path / "plain", kind="unet", num_class_embeds=None)
    refused("not class-conditional: its unet has no num_class_embeds", config_of(plain), data)
    refused("latents of 5 channels, and a denoiser from 4 to 8", config_of(pretrained(tmp_path / "five", latents=5)), data)
    refused("data has 4 channels, the autoencoder 3 in", config_of(unet), spec(4, 8, 3))


def test_options_belong_to_generators():
    for options in ({"pretrained": "x"}, {"pretrained_classes": (1, 2)}):
        with pytest.raises(InputError, match=r"as generator\.name is 'gan' and this is an option of 'pipeline'"):
            GeneratorConfig(name="gan", **options)
    for options in ({"width": 8}, {"latent_dim": 8}, {"scheduler": "heun"}, {"blocks": 2}):
        with pytest.raises(InputError, match=r"as generator\.name is 'pipeline'"):
            GeneratorConfig(name="pipeline", **options)
