//! Tensors of a safetensors file, read piece by piece: never the file and its tensors at once.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};

use super::files::is_mask;
use crate::error::{Error, Result};

/// Bytes that are read at a time: a tensor is never there twice.
const PIECE: u64 = 1 << 20;

/// A safetensors file whose header is read and found to fit its length.
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
}

impl SafetensorsFile {
    /// Opens a file.
    ///
    /// # Errors
    /// It can't be read, is cut short, or is none: in words that tell the user what to do.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::io(path, source);
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut head = Vec::new();
        (&mut file).take(8).read_to_end(&mut head).map_err(io)?;
        let header_len = head.first_chunk::<8>().map_or(0, |head| u64::from_le_bytes(*head));
        (&mut file).take(header_len.min(length)).read_to_end(&mut head).map_err(io)?;
        let header = header(&head, length).map_err(|error| Error::bad_file(path, diagnose(&head, length, &error)))?;
        Ok(Self { path: path.to_owned(), file, header, start: head.len() as u64 })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn header(&self) -> &Metadata {
        &self.header
    }

    /// The numbers of a tensor of this file, which are of type `dtype`, as f32.
    pub fn read(&mut self, tensor: &TensorInfo, dtype: DType) -> Result<Vec<f32>> {
        let io = |source| Error::io(&self.path, source);
        let (from, to) = tensor.data_offsets;
        self.file.seek(SeekFrom::Start(self.start + from as u64)).map_err(io)?;
        let mut bytes = Vec::new();
        let mut numbers: Vec<f32> = Vec::with_capacity((to - from) / dtype.size_in_bytes());
        let mut n_left = (to - from) as u64;
        while n_left > 0 {
            let n = n_left.min(PIECE);
            bytes.clear();
            (&mut self.file).take(n).read_to_end(&mut bytes).map_err(io)?;
            if bytes.len() as u64 != n {
                return Err(Error::bad_file(&self.path, "has become shorter while it was read"));
            }
            let piece = Tensor::from_raw_buffer(&bytes, dtype, &[bytes.len() / dtype.size_in_bytes()], &Device::Cpu)?;
            numbers.extend(piece.to_dtype(DType::F32)?.to_vec1::<f32>()?);
            n_left -= n;
        }
        Ok(numbers)
    }
}

/// Adds every tensor of one file, as f32, and returns the file's metadata.
pub(super) fn read_safetensors(
    path: &Path,
    device: &Device,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<HashMap<String, String>> {
    let mut file = SafetensorsFile::open(path)?;
    for name in file.header().offset_keys() {
        let Some(info) = file.header().info(&name).cloned() else { continue };
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            // A mask of some exporters, left out later by its name.
            Dtype::U8 | Dtype::BOOL if is_mask(&name) => continue,
            other => {
                let problem = format!("tensor `{name}` is of type {other:?}, supported are F32, F16, BF16");
                return Err(Error::bad_file(path, problem));
            }
        };
        let numbers = file.read(&info, dtype)?;
        let tensor = Tensor::from_vec(numbers, info.shape.as_slice(), &Device::Cpu)?.to_device(device)?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Error::bad_file(path, format!("tensor `{name}` is in another shard too")));
        }
    }
    Ok(file.header().metadata().clone().unwrap_or_default())
}

/// The header of a file of this length, from its first bytes up to the header's end, as far as the file goes.
fn header(head: &[u8], length: u64) -> std::result::Result<Metadata, SafeTensorError> {
    let (n, json) = head.split_first_chunk::<8>().ok_or(SafeTensorError::HeaderTooSmall)?;
    if u64::from_le_bytes(*n) != json.len() as u64 {
        return Err(SafeTensorError::InvalidHeaderLength);
    }
    let header: Metadata = serde_json::from_slice(json).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    // Checks that the tensors follow one another, each as long as its shape says.
    let info = |name: String| header.info(&name).cloned().map(|info| (name, info));
    let checked =
        Metadata::new(header.metadata().clone(), header.offset_keys().into_iter().filter_map(info).collect())?;
    if head.len() as u64 + checked.data_len() as u64 != length {
        return Err(SafeTensorError::MetadataIncompleteBuffer);
    }
    Ok(checked)
}

/// What is wrong with a file of this length and this beginning that is no safetensors file, in words that tell the user what to do.
fn diagnose(bytes: &[u8], length: u64, error: &SafeTensorError) -> String {
    let header = bytes.first_chunk::<8>().map(|head| u64::from_le_bytes(*head));
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") {
        return "is a PyTorch pickle under another name, not a safetensors file: save it again as safetensors".into();
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return "is a git-lfs pointer, not the file itself: fetch it with `git lfs pull`".into();
    }
    match (error, header) {
        (SafeTensorError::HeaderTooSmall, _) | (_, None) => {
            format!("has {length} bytes, too few for a safetensors file: it is cut short")
        }
        (SafeTensorError::InvalidHeaderLength, Some(n)) => {
            format!("its header should have {n} bytes, but the file has {length}: it is cut short")
        }
        (SafeTensorError::MetadataIncompleteBuffer, _) => {
            format!("has {length} bytes, its header tells of another number: it is cut short or damaged")
        }
        _ => format!("is not a safetensors file: {error}"),
    }
}
