//! Regular expressions as Prometheus takes them: the whole text must match, and `.` matches a line break.

use regex::{Regex, RegexBuilder};

/// Most memory for a compiled one, in bytes.
const MAX_SIZE: usize = 1 << 20;

/// Compiles one; the error says what is wrong, on one line.
pub fn whole(text: &str) -> Result<Regex, String> {
    let compiled =
        RegexBuilder::new(&format!("^(?:{text})$")).dot_matches_new_line(true).size_limit(MAX_SIZE).build();
    compiled.map_err(|error| {
        // The last line says what is wrong, those before show where.
        let error = error.to_string();
        let problem = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("`{text}` is no regular expression: {problem}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_text_must_match() {
        let one = whole("a.*|b").unwrap();
        assert!(one.is_match("a\nx") && one.is_match("b"));
        assert!(!one.is_match("xb") && !one.is_match("bx"));
        let error = whole("(").unwrap_err();
        assert!(error.contains("`(`") && !error.contains('\n'), "{error}");
        assert!(whole("a{1000}{1000}").is_err());
    }
}
