"""penstock: training data for PyTorch, in exactly the right order at the speed of the hardware.

Every public name can be imported from here. Names are resolved on first use, so importing the
package is light and silent: it loads neither torch nor any optional dependency.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "errors": (
        "AccessDenied BadBlock BadManifest BadMedia BadRecord ConfigError FormatError LedgerError LoaderClosed "
        "LoaderTimeout ObjectChanged ObjectMissing PenstockError PlanError SampleError StaleClaim StateMismatch "
        "StoreError StoreUnavailable WorkerDied"
    ),
    "types": "Dataset World",
    "formats.block_check": "get_block_info verify_block_structure",
    "formats.block_manifest": "BlockMetadata DatasetBlockInfo estimate_block_count",
    "formats.block_writer": "StreamingBlockWriter",
    "plan.permutation": "permute",
    "plan.plan": "Cursor Plan",
    "ledger.chunk_tracker": "ChunkTracker",
    "ledger.torch_store": "StoreLedger",
    "seeds": "rng",
    "store.cache": "open_cache",
    "store.sizes": "parse_size",
    "store.store": "open_store",
    "store.ranged_file": "open_file",
    "transforms.captions": "ReadText SampleText",
    "transforms.collate": "Collate",
    "transforms.image": "DecodeImage ResizeImage",
    "transforms.image_augment": ("ChannelsFirst CropImage FitBucket FlipImage NormalizeImage RandomResizedCrop"),
    "transforms.image_header": "image_size",
    "transforms.image_shapes": "aspect_buckets nearest_bucket",
    "transforms.latent_crop": "CropLatent",
    "transforms.latent_presets": (
        "audio_latent_pipeline image_latent_pipeline text_latent_pipeline video_latent_pipeline"
    ),
    "transforms.latents": "LoadLatent SampleEmbedding SampleLatent",
    "transforms.metadata": "Cast ClassId Constants Drop Filter Gather LoadJson OneHot PickSubfield Rename",
    "transforms.presets": "image_pipeline metadata_pipeline text_pipeline",
    "transforms.tokenizer": "Tokenizer",
    "transforms.tokenize_text": "TokenizeText",
    "transforms.audio": "DecodeAudio audio_pipeline",
    "transforms.quantize": "linear_decode linear_encode mu_law_decode mu_law_encode zero_level",
    "transforms.video": "DecodeVideo video_pipeline",
    "transforms.video_audio": "DecodeVideoAudio",
    "transforms.video_presets": "joint_video_audio_pipeline text_to_video_pipeline",
    "prep.blocks": "process_raw_dataset_to_blocks",
    "prep.download": "download_dataset",
    "prep.export_bq": "ExportConfig ExportReport export_bigquery read_export_config",
    "prep.search": "search_datasets training_support",
    "prep.tokenize": "tokenize",
    "prep.train_tokenizer": "train_tokenizer",
    "index.table": "Index",
    "index.build": "build_index",
    "index.saved": "open_index",
    "datasets.tokens": "TokenDataset get_batch",
    "datasets.transformer": "TransformerDataset",
    "datasets.documents": "DocumentDataset",
    "datasets.packed": "PackedDataset",
    "datasets.text": "TextDataset",
    "datasets.audio_splits": "QuantizedAutoregressiveAudio",
    "datasets.quantized_audio": "QuantizedAudioDataset",
    "datasets.block_dataset": "BlockDataset",
    "datasets.sample_check": "verify_samples",
    "datasets.streaming": "StreamingDataset",
    "datasets.blocks": "BlockManager DataBlock",
    "datasets.mix": "mix",
    "loader.loader": "StreamingDataLoader",
    "loader.multistream": "MultiStreamDataLoader",
    "loader.stream_options": "StreamOptions",
    "loader.world": "detect_world",
    "loader.text": "create_dataloaders",
    "loader.round_policy": "RoundRecord",
    "loader.rounds": "Round",
    "train.chunked_audio": "ChunkedQuantizedAudioDataset ChunkedQuantizedAutoregressiveAudio",
    "train.chunked_dataloader": "ChunkedDataLoader",
    "train.chunked_sampler": "ChunkedSampler",
    "train.checkpoints": "load_checkpoint load_training_checkpoint save_best save_training_checkpoint",
    "train.config": "TrainingConfig read_config",
    "train.round_config": "RoundSizes resolve_rounds",
    "train.sequence_dataset": "ChunkedSequenceDataset",
    "train.chunked_training": "ChunkedTrainingMixin",
    "train.evaluation_rounds": "EvaluationRounds",
    "train.lightning": "RoundsCallback RoundsDataModule",
    "train.rollout": "chunked_segment_rollout recommend_chunk_size recommend_dataset_chunk_size",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value = getattr(import_module(f"penstock.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
