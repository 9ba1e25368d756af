"""transformers' common tests of video processors, on ours and on VideoMAE's."""

import unittest

import torch
from archive import import_common
from transformers import VideoMAEVideoProcessor
from transformers.video_utils import VideoMetadata

from mme_hf import MMEVideoProcessor

common = import_common("test_video_processing_common")


class VideoProcessorTester:
    """Options of a processor and its inputs. Names are those that the common tests read."""

    batch_size = 5
    num_frames = 8
    num_channels = 3
    crop_size = 18

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return common.prepare_video_inputs(
            batch_size=self.batch_size,
            num_frames=self.num_frames,
            num_channels=self.num_channels,
            min_resolution=30,
            max_resolution=80,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )

    def expected_output_video_shape(self, videos):
        return self.num_frames, self.num_channels, self.crop_size, self.crop_size


class VideoProcessorTests(common.VideoProcessingTestMixin):
    input_name = "pixel_values"
    # With this one the common test of what a processor's output can be cast to runs.
    test_cast_dtype = True
    own_options = {}  # noqa: RUF012

    def setUp(self):
        super().setUp()
        self.video_processor_tester = VideoProcessorTester()

    @property
    def video_processor_dict(self):
        return {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}, **self.own_options}


class MMEVideoProcessorTest(VideoProcessorTests, unittest.TestCase):
    fast_video_processing_class = MMEVideoProcessor
    own_options = {"num_frames": 8, "patch_size": 2, "cell_size_px": 2}  # noqa: RUF012

    def test_call_sample_frames(self):
        """The common test, but a clip always has `num_frames` frames, as a model of clips needs.

        transformers takes `fps` alone for the whole video, however many frames that makes, and refuses a video that
        has fewer than `num_frames`; ours takes a clip at that rate, and repeats the last frame.
        """
        processor = self.fast_video_processing_class(**self.video_processor_dict)
        videos = self.video_processor_tester.prepare_video_inputs(return_tensors="torch")

        def shapes(num_videos=5, **options):
            single = processor(videos[0], return_tensors="pt", **options).pixel_values
            batch = processor(videos[:num_videos], return_tensors="pt", **options).pixel_values
            self.assertEqual((len(single), len(batch)), (1, num_videos))
            self.assertEqual(single.shape[1], batch.shape[1])
            return single.shape[1], torch.equal(single[:, -2], single[:, -1])

        processor.do_sample_frames = False
        self.assertEqual(shapes(num_frames=3), (8, False))
        processor.do_sample_frames = True
        self.assertEqual(shapes(num_frames=3), (3, False))
        self.assertEqual(shapes(num_frames=10), (10, True))
        with self.assertRaises(ValueError):
            processor.sample_frames(metadata=VideoMetadata(total_num_frames=8), fps=3)
        known = {"duration": 2.0, "total_num_frames": 8, "fps": 4}
        for metadata in (known, VideoMetadata(**known)):
            self.assertEqual(shapes(1, num_frames=4, fps=2, video_metadata=[[metadata]]), (4, False))
            batch = processor(videos, return_tensors="pt", num_frames=4, fps=2, video_metadata=[[metadata]] * 5)
            wanted = processor(videos, return_tensors="pt", num_frames=4, frame_stride=2)
            self.assertTrue(torch.equal(batch.pixel_values, wanted.pixel_values))


class VideoMAEVideoProcessorTest(VideoProcessorTests, unittest.TestCase):
    fast_video_processing_class = VideoMAEVideoProcessor
