"""AUTOMATIC1111's API with webuiapi, and what Open WebUI, SillyTavern and Forge's clients send."""

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import webuiapi
from PIL import ExifTags, Image

from tests.clients.conftest import ENDLESS
from tests.conftest import DOUBLES
from tests.pictures import gradient, half_mask


def api_of(service, key: str | None = None) -> webuiapi.WebUIApi:
    login = {"username": "easel", "password": key} if key else {}
    return webuiapi.WebUIApi(host="127.0.0.1", port=service.port, **login)


@pytest.fixture
def api(service) -> Iterator[webuiapi.WebUIApi]:
    api = api_of(service)
    yield api
    api.session.close()


@pytest.fixture
def brittle_api(brittle) -> Iterator[webuiapi.WebUIApi]:
    api = api_of(brittle.ready())
    yield api
    api.session.close()


class Parallel(threading.Thread):
    """A call on a thread of its own; join() gives its result."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self._call = call
        self.start()

    def run(self) -> None:
        try:
            self._result: Any = self._call()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is read
            self._result = error

    def result(self) -> Any:
        self.join(60)
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


def last_job(service):
    return service.client.get("/jobs", params={"limit": 1}).json()["jobs"][0]


def parsed(text: str) -> dict[str, str]:
    """A recipe text by the rules of AUTOMATIC1111's own reader: the last line holds `Key: value`
    pairs parted by commas, values with a comma, a colon or a newline in them are JSON strings; what
    stands before it is the prompt up to a line that begins with `Negative prompt:`."""
    *lines, last = text.strip().split("\n")
    found: dict[str, str] = {}
    rest = last
    while rest:
        key, _, rest = rest.partition(":")
        rest = rest.lstrip()
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:]
        else:
            value = re.match(r"[^,]*", rest)[0]
            rest = rest[len(value) :]
        rest = rest.lstrip(", ")
        size = re.fullmatch(r"(\d+)x(\d+)", value)
        if size:
            found[f"{key}-1"], found[f"{key}-2"] = size.groups()
        else:
            found[key] = value
    starts = [n for n, line in enumerate(lines) if line.startswith("Negative prompt:")]
    split = starts[0] if starts else len(lines)
    found["Prompt"] = "\n".join(lines[:split])
    found["Negative prompt"] = "\n".join(lines[split:]).removeprefix("Negative prompt:").strip()
    return found


def test_txt2img(api, facts, small):
    result = api.txt2img(
        prompt='a "red" circle, large:\non a blue background',
        negative_prompt="green, blurry",
        seed=7,
        steps=5,
        cfg_scale=6.5,
        width=small,
        height=small,
        sampler_name="Euler a",
        batch_size=2,
    )
    assert [picture.size for picture in result.images] == [(small, small)] * 2
    info = result.info
    assert info["all_seeds"] == [7, 8]
    assert (info["seed"], info["steps"], info["cfg_scale"]) == (7, 5, 6.5)
    assert (info["sampler_name"], info["sd_model_name"]) == ("Euler a", "demo")
    assert info["warnings"] == []
    assert result.parameters["steps"] == 5
    needed = """prompt all_prompts negative_prompt all_negative_prompts seed all_seeds subseed
        all_subseeds subseed_strength width height sampler_name cfg_scale steps batch_size
        restore_faces sd_model_name sd_model_hash denoising_strength extra_generation_params
        index_of_first_image infotexts styles job_timestamp clip_skip version"""
    assert set(needed.split()) <= set(info)
    for n, picture in enumerate(result.images):
        text = picture.info["parameters"]
        assert text == info["infotexts"][n]
        read = parsed(text)
        assert read["Prompt"] == 'a "red" circle, large:\non a blue background'
        assert read["Negative prompt"] == "green, blurry"
        assert read["Sampler"] == "Euler a"
        assert read["Seed"] == str(7 + n)
        assert (read["Steps"], read["CFG scale"]) == ("5", "6.5")
        assert (read["Size-1"], read["Size-2"]) == (str(small), str(small))
        assert read["Model"] == "demo"
        asked = api.png_info(picture)
        assert asked.info == text
        assert asked.parameters["Prompt"] == read["Prompt"]
        assert asked.parameters["Size"] == f"{small}x{small}"
        assert asked.json["items"] == {"parameters": text}


def test_the_recipe_is_in_jpeg_and_webp_too(api):
    for form, name in (("jpg", "JPEG"), ("webp", "WEBP")):
        result = api.txt2img(prompt="a red circle", steps=2, override_settings={
            "samples_format": form}, width=128, height=128)  # fmt: skip
        assert result.image.format == name
        exif = result.image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        assert exif[:8] == b"UNICODE\0"
        assert exif[8:].decode("utf-16-be") == result.info["infotexts"][0]


def test_the_same_seed_gives_the_same_picture_and_minus_one_another(api):
    def one(seed):
        return api.txt2img(prompt="a red circle", seed=seed, steps=3, width=128, height=128)

    first, second, third, fourth = one(3), one(3), one(-1), one(-1)
    many = api.txt2img(prompt="a", n_iter=2, batch_size=2, steps=1, width=64, height=64)
    assert first.image.tobytes() == second.image.tobytes()
    assert third.info["seed"] != fourth.info["seed"]
    assert len(many.info["all_seeds"]) == len(many.images) == 4


def test_every_sampler_by_its_name_and_an_unknown_one_with_a_warning(api, facts):
    for name in api.util_get_sampler_names():
        result = api.txt2img(prompt="a red circle", steps=2, width=128, height=128,
            sampler_name=name)  # fmt: skip
        assert result.info["sampler_name"] == name
        assert result.info["warnings"] == []
    result = api.txt2img(
        prompt="a red circle", steps=2, width=128, height=128, sampler_name="DPM++ 2M Karras"
    )
    assert "DPM++ 2M Karras" in result.info["warnings"][0]
    assert result.info["sampler_name"] in api.util_get_sampler_names()


def test_what_cannot_be_honoured_is_told(api):
    result = api.txt2img(
        prompt="a red circle",
        width=129,
        height=128,
        steps=2,
        restore_faces=True,
        tiling=True,
        enable_hr=True,
        scheduler="Karras",
        override_settings={"CLIP_stop_at_last_layers": 2, "sd_vae": "best.vae"},
    )
    told = " ".join(result.info["warnings"])
    for name in ("width", "restore_faces", "tiling", "enable_hr", "scheduler",
                 "CLIP_stop_at_last_layers", "sd_vae"):  # fmt: skip
        assert name in told
    assert "hr_scale" not in told and "subseed" not in told and "override" not in told


def test_img2img(api, service, facts):
    init = gradient(128, 128)
    result = api.img2img(
        images=[init], prompt="a red circle", denoising_strength=0.4, steps=10, width=128,
        height=128, seed=3)  # fmt: skip
    assert result.image.size == (128, 128)
    assert result.info["denoising_strength"] == 0.4
    assert result.info["warnings"] == []
    recipe = last_job(service)["recipe"]
    assert (recipe["strength"], recipe["mask"], recipe["mask_padding"]) == (0.4, None, None)
    assert parsed(result.image.info["parameters"])["Denoising strength"] == "0.4"


def test_img2img_without_a_prompt(api):
    result = api.img2img(images=[gradient()], steps=4, width=128, height=128)
    assert result.info["prompt"] == ""


LEFT, RIGHT = (0, 0, 64, 128), (64, 0, 128, 128)


@pytest.mark.parametrize(("invert", "kept", "changed"), [(0, LEFT, RIGHT), (1, RIGHT, LEFT)])
def test_a_mask_and_its_inverse(api, invert, kept, changed):
    init = gradient(128, 128)
    result = api.img2img(
        images=[init], mask_image=half_mask(), prompt="a red circle", denoising_strength=0.9,
        inpainting_mask_invert=invert, mask_blur=0, inpaint_full_res=False, inpainting_fill=1,
        width=128, height=128, steps=8, seed=1)  # fmt: skip
    assert result.image.crop(kept).tobytes() == init.crop(kept).tobytes()
    assert result.image.crop(changed).tobytes() != init.crop(changed).tobytes()


def test_mask_blur_makes_the_edge_soft(api, service):
    api.img2img(
        images=[gradient()], mask_image=half_mask(), prompt="a circle", mask_blur=8,
        inpaint_full_res=False, width=128, height=128, steps=4)  # fmt: skip
    data = service.client.get(last_job(service)["recipe"]["mask"]).content
    mask = Image.open(io.BytesIO(data))
    row = [mask.getpixel((x, 64)) for x in range(128)]
    assert row == sorted(row)
    assert row[0] == 0 and row[-1] == 255
    assert 60 < row[60] < row[67] < 195  # soft around the middle, 8 pixels of deviation


def test_only_the_masked_part_is_redrawn_at_full_size(api, service, facts):
    """inpaint_full_res: the picture keeps its own size, also one that the model could not make."""
    init = gradient(301, 203)
    mask = Image.new("L", init.size, 0)
    mask.paste(255, (200, 50, 260, 110))
    result = api.img2img(
        images=[init], mask_image=mask, prompt="a red circle on a blue background",
        denoising_strength=1, mask_blur=0, inpaint_full_res=True, inpaint_full_res_padding=16,
        inpainting_fill=1, width=128, height=128, steps=8, seed=1)  # fmt: skip
    made = result.image
    assert made.size == init.size
    assert result.info["warnings"] == []
    outside = Image.composite(Image.new("RGB", init.size), made, mask)
    assert outside.tobytes() == Image.composite(Image.new("RGB", init.size), init, mask).tobytes()
    box = (200, 50, 260, 110)
    assert made.crop(box).tobytes() != init.crop(box).tobytes()
    job = last_job(service)
    assert (job["images"][0]["width"], job["images"][0]["height"]) == (301, 203)
    # The recipe is complete: posted again as it stands, it makes the same picture.
    again = service.generate(**job["recipe"])
    assert service.picture(again) == service.picture(job)


def test_resize_modes(api, service):
    init = Image.new("RGB", (256, 128), "red")
    init.paste("blue", (64, 0, 192, 128))
    for mode, corner in ((0, (255, 0, 0)), (1, (0, 0, 255)), (2, (0, 0, 0))):
        api.img2img(images=[init], prompt="a", resize_mode=mode, width=128, height=128, steps=2)
        data = service.client.get(last_job(service)["recipe"]["init_image"]).content
        assert Image.open(io.BytesIO(data)).getpixel((2, 2)) == corner
    result = api.img2img(images=[init], prompt="a", resize_mode=3, width=128, height=128, steps=2)
    assert "resize_mode" in result.info["warnings"][0]


def test_lists(api, service, facts):
    assert "demo" in api.util_get_model_names()
    assert api.util_get_current_model() == "demo"
    assert len(api.util_get_sampler_names()) == len(facts["samplers"])
    assert api.util_get_scheduler_names() == ["automatic"]
    assert {"name", "label", "aliases", "default_rho", "need_inner_model"} <= set(
        api.get_schedulers()[0]
    )
    assert {"title", "model_name", "hash", "sha256", "filename", "config"} == set(
        api.get_sd_models()[0]
    )
    assert [each["name"] for each in api.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert api.get_latent_upscale_modes() == []
    assert api.get_sd_vae() == [] and api.get_loras() == []
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_cmd_flags() == {}
    memory = api.get_memory()
    assert 0 < memory["ram"]["used"] < memory["ram"]["total"]
    assert "cuda" in memory
    assert api.get_embeddings()["loaded"] == {}


def test_idle_is_no_progress_and_no_job(api):
    progress = api.get_progress()
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    assert progress["current_image"] is None


def test_options_come_back_as_they_went(api, two_models):
    options = api.get_options()
    assert api.set_options(options) == {}
    keyed = api_of(two_models, "first-key")
    keyed.util_set_model("other")
    assert keyed.util_get_current_model() == "other"
    assert two_models.client.get("/health/ready").json()["model"] == "other"
    result = keyed.txt2img(
        prompt="well", steps=2, width=64, height=64,
        override_settings={"sd_model_checkpoint": "brittle"})  # fmt: skip
    assert result.info["sd_model_name"] == "brittle"
    assert keyed.util_get_current_model() == "other"
    keyed.txt2img(
        prompt="well", steps=2, width=64, height=64, override_settings_restore_afterwards=False,
        override_settings={"sd_model_checkpoint": "brittle"})  # fmt: skip
    assert keyed.util_get_current_model() == "brittle"
    keyed.util_set_model("demo")
    keyed.session.close()


def test_an_unknown_checkpoint_is_404_and_never_another_one(service):
    for path, body in (
        ("options", {"sd_model_checkpoint": "v1-5-pruned"}),
        ("txt2img", {"prompt": "a", "override_settings": {"sd_model_checkpoint": "v1-5"}}),
    ):
        answer = service.client.post(f"/sdapi/v1/{path}", json=body)
        assert answer.status_code == 404
        assert set(answer.json()) == {"error", "detail", "body", "errors"}
        assert "v1-5" in answer.json()["detail"]


def test_extra_single_image(api):
    init = gradient(64, 32)
    assert api.extra_single_image(init, upscaler_1="Nearest").image.size == (128, 64)
    result = api.extra_single_image(init, upscaler_1="R-ESRGAN 4x+", upscaling_resize=4)
    assert result.image.size == (256, 128)
    assert "upscaler_1" in result.info
    size = {"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 100}
    cropped = api.extra_single_image(init, upscaler_1="Lanczos", **size)
    assert cropped.image.size == (100, 100)
    whole = api.extra_single_image(init, upscaler_1="Lanczos", upscaling_crop=False, **size)
    assert whole.image.size == (100, 50)
    with pytest.raises(RuntimeError, match="422"):
        api.extra_single_image(gradient(4000, 4000), upscaling_resize=8)


def test_progress_interrupt_and_what_comes_of_it(brittle, brittle_api):
    api = brittle_api
    call = Parallel(lambda: api_of(brittle).txt2img(**ENDLESS, width=64, height=64))
    brittle.wait_for(lambda: api.get_progress()["current_image"] is not None)
    progress = api.get_progress()
    assert 0 < progress["progress"] < 1
    state = progress["state"]
    assert (state["job_count"], state["sampling_steps"]) == (1, ENDLESS["steps"])
    assert state["sampling_step"] > 0
    preview = Image.open(io.BytesIO(base64.b64decode(progress["current_image"])))
    assert preview.format == "JPEG"
    skipped = brittle.client.get("/sdapi/v1/progress", params={"skip_current_image": True}).json()
    assert skipped["current_image"] is None
    assert api.interrupt() == {}
    result = call.result()
    assert result.images == []
    assert "interrupted." in result.info["warnings"]
    brittle.wait_for(lambda: api.get_progress()["progress"] == 0)
    assert api.get_progress()["state"]["job_count"] == 0


def test_skip_ends_the_running_job_and_the_next_one_runs(brittle, brittle_api):
    first = Parallel(lambda: api_of(brittle).txt2img(**ENDLESS, width=64, height=64))
    brittle.wait_for(lambda: brittle_api.get_progress()["progress"] > 0)
    second = Parallel(lambda: api_of(brittle).txt2img(prompt="well", width=64, height=64))
    brittle.wait_for(lambda: len(active(brittle)) == 2)
    assert brittle_api.skip() == {}
    assert first.result().images == []
    assert len(second.result().images) == 1


def active(service):
    jobs = service.client.get("/jobs").json()["jobs"]
    return [job for job in jobs if job["state"] in ("queued", "running")]


def test_interrupt_stops_neither_other_faces_jobs_nor_other_keys(start):
    service = start(MODEL="brittle", MODELS_PATH=str(DOUBLES), API_KEYS="one,two").ready()
    native = service.submit(**ENDLESS)  # with the first key, but not through this face
    theirs = Parallel(lambda: api_of(service, "two").txt2img(**ENDLESS, width=64, height=64))
    service.wait_for(lambda: len(active(service)) == 2)
    mine = api_of(service, "one")
    assert mine.interrupt() == {} and mine.get_progress()["state"]["job_count"] == 0
    assert len(active(service)) == 2
    service.client.delete(f"/jobs/{native}")
    other = api_of(service, "two")
    service.wait_for(lambda: other.get_progress()["progress"] > 0)
    assert mine.interrupt() == {}
    assert len(active(service)) == 1
    assert other.interrupt() == {}
    assert theirs.result().images == []
    mine.session.close()
    other.session.close()


def test_forges_task_tracking(brittle):
    task = {"id_task": "task(abc)", "id_live_preview": -1, "live_preview": True}

    def progress():
        return brittle.client.post("/internal/progress", json=task).json()

    brittle.ready()
    assert progress() == {
        "active": False, "queued": False, "completed": False, "progress": None, "eta": None,
        "live_preview": None, "id_live_preview": -1, "textinfo": None}  # fmt: skip
    body = {**ENDLESS, "width": 64, "height": 64, "force_task_id": "task(abc)"}
    call = Parallel(lambda: brittle.client.post("/sdapi/v1/txt2img", json=body))
    brittle.wait_for(lambda: progress()["live_preview"] is not None)
    state = progress()
    assert (state["active"], state["queued"], state["completed"]) == (True, False, False)
    assert 0 < state["progress"] < 1
    assert state["live_preview"].startswith("data:image/jpeg;base64,")
    assert brittle.client.get("/internal/pending-tasks").json() == {
        "size": 1, "tasks": ["task(abc)"]}  # fmt: skip
    brittle.client.post("/sdapi/v1/interrupt")
    assert call.result().status_code == 200
    assert (progress()["active"], progress()["completed"]) == (False, True)
    assert brittle.client.get("/internal/pending-tasks").json() == {"size": 0, "tasks": []}


def test_open_webui(service):
    """Its calls in their order: options, the whole options object back, txt2img."""
    options = service.client.get("/sdapi/v1/options").json()
    options["sd_model_checkpoint"] = "demo"
    assert service.client.post("/sdapi/v1/options", json=options).status_code == 200
    body = {"prompt": "a red circle", "batch_size": 1, "width": 128, "height": 128, "steps": 5}
    answer = service.client.post("/sdapi/v1/txt2img", json=body).json()
    assert len(answer["images"]) == 1
    assert isinstance(answer["info"], str) and isinstance(answer["parameters"], dict)


def test_sillytavern(service):
    """It sends its own `url` and `auth` along, and an empty Basic header."""
    body = {
        "url": "http://127.0.0.1:7860",
        "auth": "user:a-secret-of-mine",
        "prompt": "a red circle",
        "negative_prompt": "",
        "sampler_name": "Euler a",
        "scheduler": "Automatic",
        "steps": 4,
        "cfg_scale": 7,
        "width": 128,
        "height": 128,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 2,
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    answer = service.client.post("/sdapi/v1/txt2img", json=body, headers={"Authorization": "Basic"})
    assert answer.status_code == 200
    assert len(answer.json()["images"]) == 1
    assert "a-secret-of-mine" not in answer.text
    assert "a-secret-of-mine" not in service.log()


def test_basic_bearer_and_bare_keys(two_models):
    url = f"{two_models.url}/sdapi/v1/sd-models"
    good = [
        {"auth": ("anybody", "second-key")},
        {"headers": {"Authorization": "Bearer first-key"}},
        {"headers": {"Authorization": "first-key"}},
        {"headers": {"X-API-Key": "second-key"}},
        {"headers": {"Authorization": "Bearer wiv83hveivd83vk83"}},
    ]
    for shown in good:
        assert httpx.get(url, **shown).status_code == 200
    for shown in ({}, {"auth": ("anybody", "third-key")}, {"headers": {"Authorization": "Basic"}}):
        answer = httpx.get(url, **shown)
        assert answer.status_code == 401
        assert set(answer.json()) == {"error", "detail", "body", "errors"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a", "init_images": "x"},
        {"prompt": 5},
        {"prompt": "a", "init_images": ["!"]},
    ],
)
def test_errors_have_the_dialects_shape(service, body):
    answer = service.client.post("/sdapi/v1/img2img", json=body)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "detail", "body", "errors"}
