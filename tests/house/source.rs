//! Reads Rust source as far as the house rules need: the paths that it names, with `use` trees flattened and `super` resolved.

use std::path::{Component, Path};

/// One path as written or flattened from a `use` tree: `["crate", "pod", "plan"]`.
pub(crate) type Named = Vec<String>;

/// One source file.
pub(crate) struct Source {
    /// Where it stands, for messages.
    pub(crate) path: String,
    /// Its module path: `pod::plan` for `src/pod/plan.rs`; empty for the root of a crate.
    pub(crate) module: Vec<String>,
    /// Every path of two or more segments, `super` and `self` resolved to `crate`.
    pub(crate) named: Vec<Named>,
}

impl Source {
    /// Reads `text`; `below` is its path below the crate's `src`.
    pub(crate) fn new(path: &str, below: &Path, text: &str) -> Self {
        let module = module_of(below);
        let named = Reader { tokens: tokens(text), at: 0, modules: vec![] }.named(&module);
        Self { path: path.to_owned(), module, named }
    }

    /// The room: the first segment of the module path, `cli` for the crate's root files.
    pub(crate) fn room(&self) -> &str {
        self.module.first().map_or("cli", String::as_str)
    }
}

fn module_of(below: &Path) -> Vec<String> {
    let mut segments: Vec<String> = below
        .with_extension("")
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect();
    if segments.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        segments.pop();
    }
    segments
}

/// Identifiers, `::`, and single punctuation characters; comments, strings, characters and lifetimes are gone.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    let starts = |at: usize, what: &str| chars[at..].iter().take(what.len()).copied().eq(what.chars());
    while at < chars.len() {
        let char = chars[at];
        if starts(at, "//") {
            at += chars[at..].iter().take_while(|c| **c != '\n').count();
        } else if starts(at, "/*") {
            at = after_block_comment(&chars, at);
        } else if let Some(end) = after_raw_string(&chars, at) {
            at = end;
        } else if char == '"' {
            at = after_quoted(&chars, at, '"');
        } else if char == '\'' {
            at = after_quote(&chars, at);
        } else if char.is_alphanumeric() || char == '_' {
            let end = at + chars[at..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
            tokens.push(chars[at..end].iter().collect());
            at = end;
        } else if starts(at, "::") {
            tokens.push("::".to_owned());
            at += 2;
        } else {
            if !char.is_whitespace() {
                tokens.push(char.to_string());
            }
            at += 1;
        }
    }
    tokens
}

fn after_block_comment(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// `r"…"`, `r#"…"#`, `br"…"`; `None` when no raw string starts here.
fn after_raw_string(chars: &[char], start: usize) -> Option<usize> {
    let mut at = start + usize::from(chars[start] == 'b');
    if chars.get(at) != Some(&'r') || start > 0 && (chars[start - 1].is_alphanumeric() || chars[start - 1] == '_') {
        return None;
    }
    at += 1;
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    at += hashes;
    if chars.get(at) != Some(&'"') {
        return None;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    at += 1;
    while at < chars.len() && !chars[at..].starts_with(&end) {
        at += 1;
    }
    Some(at + end.len())
}

fn after_quoted(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != quote {
        at += 1 + usize::from(chars[at] == '\\');
    }
    at + 1
}

/// A character literal or a lifetime.
fn after_quote(chars: &[char], start: usize) -> usize {
    let literal = chars.get(start + 1) == Some(&'\\') || chars.get(start + 2) == Some(&'\'');
    if literal { after_quoted(chars, start, '\'') } else { start + 1 }
}

struct Reader {
    tokens: Vec<String>,
    at: usize,
    /// Inline modules that are open here: their name and the depth of braces at which they end.
    modules: Vec<(String, usize)>,
}

impl Reader {
    fn named(mut self, module: &[String]) -> Vec<Named> {
        let mut named = Vec::new();
        let mut depth = 0;
        while self.at < self.tokens.len() {
            match self.tokens[self.at].as_str() {
                "{" => {
                    if self.at >= 2 && self.tokens[self.at - 2] == "mod" {
                        self.modules.push((self.tokens[self.at - 1].clone(), depth));
                    }
                    depth += 1;
                }
                "}" => {
                    depth = depth.saturating_sub(1);
                    self.modules.pop_if(|(_, end)| *end == depth);
                }
                _ if self.starts_path() => {
                    let here: Vec<String> =
                        module.iter().chain(self.modules.iter().map(|(name, _)| name)).cloned().collect();
                    let mut paths = Vec::new();
                    self.tree(&[], &mut paths);
                    named.extend(paths.into_iter().filter_map(|path| resolve(path, &here)));
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
        named
    }

    fn starts_path(&self) -> bool {
        is_name(&self.tokens[self.at]) && self.tokens.get(self.at + 1).is_some_and(|next| next == "::")
    }

    /// Reads `a::b::{c, d::e}` and leaves `at` behind it.
    fn tree(&mut self, prefix: &[String], paths: &mut Vec<Named>) {
        let mut path = prefix.to_vec();
        while let Some(token) = self.tokens.get(self.at).cloned() {
            if token == "{" {
                self.at += 1;
                while self.tokens.get(self.at).is_some_and(|token| token != "}") {
                    let before = self.at;
                    self.tree(&path, paths);
                    self.at = self.at.max(before + 1);
                }
                self.at += 1;
                return;
            }
            if !is_name(&token) && token != "*" {
                break;
            }
            path.push(token);
            self.at += 1;
            if self.tokens.get(self.at).is_none_or(|next| next != "::") {
                break;
            }
            self.at += 1;
        }
        if path.len() > prefix.len() {
            paths.push(path);
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Turns `super::x` and `self::x` into `crate::…`, seen from module `here`.
fn resolve(path: Named, here: &[String]) -> Option<Named> {
    let ups = path.iter().skip(usize::from(path[0] == "self")).take_while(|segment| *segment == "super").count();
    if path[0] != "self" && path[0] != "super" {
        return Some(path);
    }
    let base = here.get(..here.len().checked_sub(ups)?)?;
    let rest = path.iter().skip(ups + usize::from(path[0] == "self"));
    Some(std::iter::once("crate".to_owned()).chain(base.iter().chain(rest).cloned()).collect())
}

mod tests {
    use super::*;

    #[track_caller]
    fn check(module: &str, text: &str, expected: &[&str]) {
        let found = Source::new("x.rs", Path::new(module), text).named;
        assert_eq!(found.iter().map(|path| path.join("::")).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn trees_are_flattened() {
        check(
            "pod/plan.rs",
            "use crate::{clock::Now, volume::{self, atomic::Writer}};",
            &["crate::clock::Now", "crate::volume::self", "crate::volume::atomic::Writer"],
        );
    }

    #[test]
    fn super_is_resolved_through_inline_modules() {
        check("pod/plan.rs", "use super::super::node::X;", &["crate::node::X"]);
        check("pod/mod.rs", "use super::node;", &["crate::node"]);
        check(
            "pod/plan.rs",
            "mod tests { use super::super::super::node::X; } use super::a::B;",
            &["crate::node::X", "crate::pod::a::B"],
        );
    }

    #[test]
    fn paths_in_code_count_and_text_does_not() {
        check(
            "a.rs",
            "fn f(c: char) { crate::node::go('\"', \"crate::x::y\", r#\"crate::z\"#) } // crate::b::c",
            &["crate::node::go"],
        );
        check("a.rs", "fn f<'a>(x: &'a str) /* crate::b::c /* */ d::e */ { std::fs::read(x) }", &["std::fs::read"]);
    }
}
