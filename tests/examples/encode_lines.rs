//! Encodes the lines of standard input, for `tests/scripts/tokenizer_parity.py`: a JSON list of ids for each line,
//! which is itself a JSON text.
//!
//! ```text
//! cargo run -p collimate-tests --example encode_lines -- DIR
//! ```

use std::io::{BufRead, Write};
use std::path::PathBuf;

use collimate_models::tokenizer::Tokenizer;

fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("which tokenizer's directory?"))?);
    let tokenizer = Tokenizer::load(&dir)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        writeln!(out, "{}", serde_json::to_string(&tokenizer.encode(&text)?)?)?;
    }
    Ok(out.flush()?)
}
