//! Selectors of targets, in the form of Prometheus: `{comm="nginx", node!="a", containerid=~"[0-9a-f]+"}`.

use std::iter::Peekable;
use std::str::CharIndices;

use regex::Regex;
use thiserror::Error;

use crate::{expression::whole, targets::Labels};

/// Longest selector, in bytes.
const MAX_LENGTH: usize = 8192;
/// Most matchers in a selector.
const MAX_MATCHERS: usize = 64;

/// What is wrong with a selector, and where.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the selector does not parse: {problem}, at byte {position}; write {{label=\"value\", other=~\"re.*\"}}"
)]
pub struct SelectorError {
    problem: String,
    position: usize,
}

#[derive(Debug)]
enum Test {
    Equal(String),
    NotEqual(String),
    Match(Regex),
    NotMatch(Regex),
}

/// Which targets are meant: those that pass all tests. A label that a target does not have is empty.
#[derive(Debug)]
pub struct Selector {
    tests: Vec<(String, Test)>,
}

impl Selector {
    /// Reads a selector.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_LENGTH {
            let problem = format!("it is longer than {MAX_LENGTH} bytes");
            return Err(SelectorError { problem, position: MAX_LENGTH });
        }
        Parser { text, characters: text.char_indices().peekable() }.selector()
    }

    /// Whether a target is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.tests.iter().all(|(name, test)| {
            let value = labels.get(name);
            match test {
                Test::Equal(expected) => value == expected,
                Test::NotEqual(expected) => value != expected,
                Test::Match(expression) => expression.is_match(value),
                Test::NotMatch(expression) => !expression.is_match(value),
            }
        })
    }
}

struct Parser<'a> {
    text: &'a str,
    characters: Peekable<CharIndices<'a>>,
}

impl Parser<'_> {
    fn selector(mut self) -> Result<Selector, SelectorError> {
        let mut tests = Vec::new();
        self.expect('{')?;
        loop {
            if self.take('}') {
                break;
            }
            if tests.len() == MAX_MATCHERS {
                return Err(self.error(format!("more than {MAX_MATCHERS} labels")));
            }
            tests.push(self.matcher()?);
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        self.skip_blanks();
        match self.characters.peek() {
            None => Ok(Selector { tests }),
            Some(_) => Err(self.error("something follows the `}`".into())),
        }
    }

    fn matcher(&mut self) -> Result<(String, Test), SelectorError> {
        let name = self.name()?;
        self.skip_blanks();
        let operator = if self.take('=') {
            if self.take_now('~') { "=~" } else { "=" }
        } else if self.take('!') {
            if self.take_now('~') {
                "!~"
            } else if self.take_now('=') {
                "!="
            } else {
                return Err(self.error("`=` or `~` is missing after `!`".into()));
            }
        } else {
            return Err(self.error(format!("=, !=, =~ or !~ is missing after `{name}`")));
        };
        self.skip_blanks();
        let position = self.position();
        let value = self.string()?;
        let test = match operator {
            "=" => Test::Equal(value),
            "!=" => Test::NotEqual(value),
            "=~" => Test::Match(expression(&value, position)?),
            _ => Test::NotMatch(expression(&value, position)?),
        };
        Ok((name, test))
    }

    fn name(&mut self) -> Result<String, SelectorError> {
        self.skip_blanks();
        let mut name = String::new();
        while let Some((_, c)) = self.characters.peek()
            && (c.is_ascii_alphabetic() || *c == '_' || (!name.is_empty() && c.is_ascii_digit()))
        {
            name.push(*c);
            self.characters.next();
        }
        if name.is_empty() { Err(self.error("the name of a label is missing".into())) } else { Ok(name) }
    }

    /// A string in the forms of Go: with escapes in `"` or `'`, without in backticks.
    fn string(&mut self) -> Result<String, SelectorError> {
        let quote = match self.characters.peek() {
            Some((_, quote @ ('"' | '\'' | '`'))) => *quote,
            _ => return Err(self.error("a value in quotes is missing".into())),
        };
        self.characters.next();
        let mut value = Vec::new();
        loop {
            let position = self.position();
            match self.characters.next() {
                None => return Err(self.error("a quote is missing".into())),
                Some((_, c)) if c == quote => break,
                Some((_, '\\')) if quote != '`' => self.escape(&mut value, quote, position)?,
                Some((_, c)) => value.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        String::from_utf8(value).map_err(|_| self.error("escapes that are no UTF-8".into()))
    }

    fn escape(&mut self, value: &mut Vec<u8>, quote: char, position: usize) -> Result<(), SelectorError> {
        let wrong = |problem: &str| SelectorError { problem: problem.into(), position };
        let Some((_, c)) = self.characters.next() else { return Err(wrong("a quote is missing")) };
        match c {
            'a' => value.push(7),
            'b' => value.push(8),
            'f' => value.push(12),
            'n' => value.push(b'\n'),
            'r' => value.push(b'\r'),
            't' => value.push(b'\t'),
            'v' => value.push(11),
            '\\' => value.push(b'\\'),
            c if c == quote => value.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            'x' => {
                let byte = self.digits(2, 16).and_then(|number| u8::try_from(number).ok());
                value.push(byte.ok_or_else(|| wrong("two hexadecimal digits are missing"))?);
            }
            'u' | 'U' => {
                let digits = if c == 'u' { 4 } else { 8 };
                let c = self.digits(digits, 16).and_then(char::from_u32);
                let c = c.ok_or_else(|| wrong("the number of a character is missing"))?;
                value.extend(c.encode_utf8(&mut [0; 4]).bytes());
            }
            '0'..='7' => {
                let first = c.to_digit(8).unwrap_or_default();
                let rest = self.digits(2, 8).ok_or_else(|| wrong("three octal digits are missing"))?;
                value.push(u8::try_from(first * 64 + rest).map_err(|_| wrong("an octal number beyond 377"))?);
            }
            c => return Err(wrong(&format!("\\{c} means nothing; a backslash is written \\\\"))),
        }
        Ok(())
    }

    fn digits(&mut self, count: usize, radix: u32) -> Option<u32> {
        let mut number: u32 = 0;
        for _ in 0..count {
            let (_, c) = self.characters.next()?;
            number = number.checked_mul(radix)?.checked_add(c.to_digit(radix)?)?;
        }
        Some(number)
    }

    fn skip_blanks(&mut self) {
        while self.characters.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn take(&mut self, expected: char) -> bool {
        self.skip_blanks();
        self.take_now(expected)
    }

    fn take_now(&mut self, expected: char) -> bool {
        self.characters.next_if(|(_, c)| *c == expected).is_some()
    }

    fn expect(&mut self, expected: char) -> Result<(), SelectorError> {
        if self.take(expected) { Ok(()) } else { Err(self.error(format!("`{expected}` is missing"))) }
    }

    fn position(&mut self) -> usize {
        self.characters.peek().map_or(self.text.len(), |(position, _)| *position)
    }

    fn error(&mut self, problem: String) -> SelectorError {
        SelectorError { problem, position: self.position() }
    }
}

fn expression(text: &str, position: usize) -> Result<Regex, SelectorError> {
    whole(text).map_err(|problem| SelectorError { problem, position })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::TargetMaker;

    fn labels(comm: &str) -> Labels {
        (*TargetMaker::new("n1", []).labels(comm, None)).clone()
    }

    fn matches(selector: &str, comm: &str) -> bool {
        Selector::parse(selector).unwrap().matches(&labels(comm))
    }

    #[test]
    fn the_four_operators() {
        assert!(matches(r#"{comm="a"}"#, "a") && !matches(r#"{comm="a"}"#, "b"));
        assert!(matches(r#"{comm!="a"}"#, "b") && !matches(r#"{comm!="a"}"#, "a"));
        assert!(matches(r#"{comm=~"a.*"}"#, "abc") && !matches(r#"{comm=~"a.*"}"#, "bac"));
        assert!(matches(r#"{comm!~"a|b"}"#, "c") && !matches(r#"{comm!~"a|b"}"#, "b"));
    }

    #[test]
    fn expressions_match_the_whole_value() {
        assert!(!matches(r#"{comm=~"b"}"#, "abc"));
        assert!(!matches(r#"{comm=~"a|b"}"#, "ab"));
        assert!(matches(r#"{comm=~"a.b"}"#, "a\nb"));
    }

    #[test]
    fn a_label_that_is_not_there_is_empty() {
        assert!(matches(r#"{containerid=""}"#, "a") && matches(r#"{containerid!="x"}"#, "a"));
        assert!(matches(r#"{containerid=~".*"}"#, "a") && !matches(r#"{containerid=~".+"}"#, "a"));
    }

    #[test]
    fn all_tests_must_pass() {
        assert!(matches(r#"{comm="a",node="n1"}"#, "a") && !matches(r#"{comm="a",node="n2"}"#, "a"));
        assert!(matches("{}", "a") && matches(" { } ", "a"));
        assert!(matches(r#" { comm = "a" , node =~ "n." , } "#, "a"));
    }

    #[test]
    fn quotes_and_escapes() {
        assert!(matches(r#"{comm="a\"b"}"#, "a\"b"));
        assert!(matches(r#"{comm='a"b'}"#, "a\"b") && matches(r"{comm='a\'b'}", "a'b"));
        assert!(matches(r"{comm=`a\x`}", r"a\x"));
        assert!(matches(r#"{comm="a\\x"}"#, r"a\x"));
        assert!(matches(r#"{comm="\n\t\x41\101\u00e9\U0001F600,}"}"#, "\n\tAAé😀,}"));
        assert!(matches(r#"{comm="\xc3\xa9"}"#, "é"));
        assert!(matches(r#"{comm=~"a\\.b"}"#, "a.b") && !matches(r#"{comm=~"a\\.b"}"#, "axb"));
        assert!(matches(r#"{comm="größe"}"#, "größe"));
    }

    #[test]
    fn a_target_is_found_by_its_own_text() {
        for comm in ["a", "a\"b", r"a\x0ab", "größe {}", "`'", "a,b=c"] {
            let labels = labels(comm);
            let selector = Selector::parse(&labels.to_string()).unwrap();
            assert!(selector.matches(&labels), "{labels}");
        }
    }

    #[test]
    fn what_does_not_parse_is_explained() {
        for (text, hint) in [
            ("", "`{` is missing"),
            ("comm=\"a\"", "`{` is missing"),
            ("{comm}", "missing after `comm`"),
            ("{comm=}", "a value in quotes"),
            ("{comm=a}", "a value in quotes"),
            ("{comm=\"a}", "a quote is missing"),
            ("{comm=\"a\"", "`}` is missing"),
            ("{comm=\"a\"} x", "follows"),
            ("{comm!\"a\"}", "after `!`"),
            ("{comm = ~\"a\"}", "a value in quotes"),
            ("{=\"a\"}", "name of a label"),
            ("{1a=\"a\"}", "name of a label"),
            ("{,}", "name of a label"),
            (r#"{comm="\q"}"#, "means nothing"),
            (r#"{comm="\x4"}"#, "hexadecimal"),
            (r#"{comm="\ud800"}"#, "number of a character"),
            (r#"{comm="\777"}"#, "beyond 377"),
            (r#"{comm="\xff"}"#, "no UTF-8"),
            ("{comm=~\"(\"}", "no regular expression"),
            ("{comm=~\"(?:a{1000}){1000}\"}", "no regular expression"),
        ] {
            let message = Selector::parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains(hint), "{text}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
        let many = format!("{{{}}}", "a=\"\",".repeat(MAX_MATCHERS + 1));
        assert!(Selector::parse(&many).is_err());
        assert!(Selector::parse(&"x".repeat(MAX_LENGTH + 1)).is_err());
    }
}
