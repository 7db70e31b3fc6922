import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from albef.data.broken import BrokenImage
from albef.data.images import open_image
from albef.data.processor import Processor
from albef.data.text import SPECIALS, build_tokenizer, clean_caption, clean_question, train_tokenizer
from tests.data.conftest import image, noise


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corner(source):
    image = open_image(source)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


class TestWords:
    def test_cleaning_rules(self):
        assert (
            clean_caption("A man, riding a <PERSON>-horse / car!  (fast)\n") == "a man riding a person horse car fast"
        )
        assert clean_caption("one two three", max_words=2) == "one two"
        assert clean_question("What  is <person>? ", 3) == "what  is"

    def test_empty_caption_is_only_the_class_token(self, processor):
        batch = processor.texts(["", " ...", "a dog"])
        assert batch["input_ids"].tolist()[0] == [processor.cls_id, processor.pad_id, processor.pad_id]
        assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1]]

    def test_ten_thousand_words_are_cut_quickly(self, processor):
        started = time.process_time()
        batch = processor.texts(["dog " * 10_000], max_tokens=25)
        assert batch["input_ids"].shape == (1, 25)
        assert time.process_time() - started < 0.5

    def test_emoji_and_right_to_left_become_tokens(self, processor):
        unknown = processor.tokenizer.token_to_id("[UNK]")
        emoji, arabic = processor.texts(["dog 🐕‍🦺", "كلب يجري"])["input_ids"].tolist()
        assert emoji[0] == arabic[0] == processor.cls_id
        assert arabic[1:] == [unknown, unknown]
        assert emoji[2] == unknown

    def test_half_an_emoji_is_no_error(self, processor):
        assert processor.texts(["dog \ud83d"])["input_ids"].tolist() == processor.texts(["dog"])["input_ids"].tolist()

    def test_cutting(self, processor):
        batch = processor.texts(["a dog"], max_tokens=5)
        assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
        assert batch["attention_mask"].tolist() == [[1, 1, 1]]
        with pytest.raises(ValueError, match="max_tokens 0 must be at least 1"):
            processor.texts(["a"], max_tokens=0)

    def test_no_texts(self, processor):
        assert processor.texts([])["input_ids"].shape == (0, 0)

    def test_wrong_types(self, processor):
        with pytest.raises(TypeError, match=r"wants a list of strings, got the string 'a dog'; write \[text\]"):
            processor.texts("a dog")
        with pytest.raises(TypeError, match="text 1 is nan of type float; every text must be a string"):
            processor.texts(["a", float("nan")])

    def test_special_ids_are_found_by_name(self):
        processor = Processor(build_tokenizer(["dog", *reversed(SPECIALS)]), (8, 8))
        assert (processor.mask_id, processor.cls_id, processor.pad_id, processor.vocab_size) == (1, 3, 5, 6)
        assert processor.texts(["dog"])["input_ids"].tolist() == [[3, 0]]

    def test_vocabulary_without_specials(self):
        with pytest.raises(ValueError, match=r"lacks \[CLS\], \[SEP\]; add one line for each"):
            build_tokenizer(["[PAD]", "[UNK]", "[MASK]"])

    def test_training_is_deterministic(self):
        captions = ["a dog runs", "two dogs running", "the dog ran", "a runner and a dog", "éclair 犬"] * 3
        first, second = (train_tokenizer(iter(captions), 60).get_vocab() for _ in range(2))
        assert first == second
        assert sorted(first, key=first.get)[:5] == list(SPECIALS)
        assert len(first) <= 60
        assert "dog" in first

    def test_training_keeps_to_the_size_with_many_characters(self):
        tokenizer = train_tokenizer(["".join(map(chr, range(0x4E00, 0x4F00))), "dog dog dog"], 20)
        assert tokenizer.get_vocab_size() <= 20
        assert {"d", "##o", "##g"} <= tokenizer.get_vocab().keys()
        with pytest.raises(ValueError, match="vocab_size 3 must be at least 10"):
            train_tokenizer(["a"], 3)


class TestImages:
    def test_missing_file(self, tmp_path):
        with pytest.raises(BrokenImage, match=r"no\.jpg: no such file; check the path and image_root"):
            open_image(tmp_path / "no.jpg")

    def test_empty_file(self, tmp_path):
        (tmp_path / "zero.jpg").touch()
        with pytest.raises(BrokenImage, match=r"zero\.jpg: the file is empty \(0 bytes\); fetch it again"):
            open_image(tmp_path / "zero.jpg")
        with pytest.raises(BrokenImage, match=r"shard:7: the file is empty"):
            open_image(b"", "shard:7")
        with pytest.raises(BrokenImage, match="the file is empty"):
            open_image(io.BytesIO())

    def test_not_an_image(self, tmp_path):
        (tmp_path / "page.jpg").write_text("<html>404</html>")
        with pytest.raises(BrokenImage, match=r"page\.jpg: not an image in a known format; fetch it again"):
            open_image(str(tmp_path / "page.jpg"))

    def test_truncated_jpeg(self, tmp_path):
        data = saved(Image.fromarray(noise()), "JPEG")
        (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
        with pytest.raises(BrokenImage, match=r"half\.jpg: damaged \(.*truncated.*\); fetch it again or leave it out"):
            open_image(tmp_path / "half.jpg")

    def test_decompression_bomb(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
        with pytest.raises(BrokenImage, match=r"image of \d+ bytes: absurdly large .*; scale it down"):
            open_image(image(size=(12, 8)))

    def test_broken_image_is_a_value_error_that_can_travel(self):
        import pickle

        error = pickle.loads(pickle.dumps(BrokenImage("a", "b", "c")))
        assert isinstance(error, ValueError)
        assert (str(error), error.reason) == ("a: b; c", "b")

    def test_wrong_type(self):
        with pytest.raises(TypeError, match="cannot open a int as an image; give a path, bytes or a binary stream"):
            open_image(3)

    def test_cmyk(self):
        red, green, blue = corner(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
        assert red > 230
        assert max(green, blue) < 40

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_is_laid_over_white(self, mode):
        assert corner(saved(Image.new(mode, (8, 8)), "PNG")) == (255, 255, 255)

    def test_half_transparent_black_is_grey(self):
        assert corner(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG")) == (127, 127, 127)

    def test_palette_with_transparency(self):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([255, 0, 0, 0, 0, 255])
        assert corner(saved(image, "PNG")) == (255, 0, 0)
        assert corner(saved(image, "PNG", transparency=0)) == (255, 255, 255)

    @pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32)])
    def test_sixteen_bit_grey_is_scaled(self, mode, dtype):
        values = np.array([[0, 257 * 100, 65535]] * 4, dtype=dtype)
        image = open_image(saved(Image.fromarray(values), "TIFF"))
        assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]

    def test_float_grey_is_scaled(self):
        image = open_image(saved(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "TIFF"))
        assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]

    def test_sixteen_bit_png(self):
        data = saved(Image.fromarray(np.full((4, 4), 257 * 60, dtype=np.uint16)), "PNG")
        assert corner(data) == (60, 60, 60)

    def test_exif_rotation(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # turn clockwise to see it upright
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[:, :8] = 255
        image = open_image(saved(Image.fromarray(pixels), "JPEG", exif=exif))
        assert image.size == (8, 16)
        assert image.getpixel((4, 2))[0] > 230
        assert image.getpixel((4, 13))[0] < 25

    def test_first_frame_of_an_animation(self):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        for kind in ("GIF", "WEBP", "PNG"):
            data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
            assert corner(data) == pytest.approx((255, 0, 0), abs=3)

    def test_streams_paths_and_bytes_agree(self, tmp_path):
        data = image((1, 2, 3))
        (tmp_path / "a.png").write_bytes(data)
        for source in (data, io.BytesIO(data), tmp_path / "a.png", str(tmp_path / "a.png")):
            assert corner(source) == (1, 2, 3)


class TestProcessor:
    def test_images(self, processor, tmp_path):
        (tmp_path / "a.png").write_bytes(image((255, 0, 0)))
        batch = processor.images([tmp_path / "a.png", image((0, 0, 0)), Image.new("L", (5, 50), 255)])
        assert batch.shape == (3, 3, 16, 24)
        assert batch.dtype == torch.float32
        white, black = ((value - torch.tensor(processor.mean)) / torch.tensor(processor.std) for value in (1, 0))
        torch.testing.assert_close(batch[2, :, 0, 0], white)
        torch.testing.assert_close(batch[1, :, 0, 0], black)
        assert processor.images([]).shape == (0, 3, 16, 24)

    def test_wrong_input(self, processor):
        with pytest.raises(TypeError, match=r"images wants a list of images, got one str; write \[image\]"):
            processor.images("a.png")
        with pytest.raises(TypeError, match="cannot open a ndarray as an image"):
            processor.images([noise()])
        with pytest.raises(ValueError, match=r"normalise wants uint8 \[B, 3, H, W\], got torch.float32 \[1, 2\]"):
            processor.normalise(torch.zeros(1, 2))

    @pytest.mark.parametrize("size", [256, (256,), (0, 4), (2.5, 3)])
    def test_wrong_size(self, processor, size):
        with pytest.raises(ValueError, match=r"must be \(height, width\) in pixels, for example"):
            Processor(processor.tokenizer, size)

    def test_save_and_load(self, processor, tmp_path):
        processor.max_tokens = 7
        processor.save_pretrained(tmp_path / "new" / "folder")
        loaded = Processor.from_pretrained(tmp_path / "new" / "folder")
        texts = ["a dog runs with [SEP] 🐕", "x" * 101]
        assert loaded.texts(texts)["input_ids"].equal(processor.texts(texts)["input_ids"])
        assert loaded.image_size == (16, 24)
        assert (loaded.mean, loaded.std, loaded.max_words, loaded.max_tokens) == (
            processor.mean, processor.std, 30, 7)  # fmt: skip

    @pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
    def test_incomplete_folder(self, processor, tmp_path, name):
        processor.save_pretrained(tmp_path)
        (tmp_path / name).write_text("{")
        with pytest.raises(ValueError, match=f"{name}: .*; give a folder that save_pretrained wrote"):
            Processor.from_pretrained(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"no saved model here .*{name}"):
            Processor.from_pretrained(tmp_path)
