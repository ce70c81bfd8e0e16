//! Links of a page that is shown below another path: what was absolute on the backend must lead through the proxy again.

/// Attributes that hold a link.
const LINKS: [&str; 12] = [
    "action",
    "background",
    "cite",
    "classid",
    "codebase",
    "data",
    "formaction",
    "href",
    "icon",
    "longdesc",
    "manifest",
    "src",
];

/// A link as the client must follow it; `None` where it can stay: it is relative, or leads elsewhere.
pub(super) fn link(link: &str, before: &str, host: &str) -> Option<String> {
    let path = if link.starts_with("//") {
        link[2..].strip_prefix(host)?
    } else if link.starts_with('/') {
        link
    } else {
        let rest = link.strip_prefix("http://").or_else(|| link.strip_prefix("https://"))?;
        rest.strip_prefix(host)?
    };
    if !path.is_empty() && !path.starts_with(['/', '?', '#']) {
        return None;
    }
    Some(format!("{}{}{path}", before.trim_end_matches('/'), if path.starts_with('/') { "" } else { "/" }))
}

/// A page with its links written anew; everything else stays as it is.
pub(super) fn page(page: &str, before: &str, host: &str) -> String {
    let mut out = String::with_capacity(page.len() + page.len() / 8);
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        if tag.starts_with("<!--") {
            let end = tag.find("-->").map_or(tag.len(), |at| at + 3);
            out.push_str(&tag[..end]);
            rest = &tag[end..];
            continue;
        }
        let end = tag_end(tag);
        attributes(&tag[..end], before, host, &mut out);
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// Where a tag ends: the first `>` outside quotes.
fn tag_end(tag: &str) -> usize {
    let mut quote = None;
    for (at, sign) in tag.char_indices() {
        match (quote, sign) {
            (Some(open), sign) if open == sign => quote = None,
            (None, '"' | '\'') => quote = Some(sign),
            (None, '>') => return at + 1,
            _ => {}
        }
    }
    tag.len()
}

fn attributes(tag: &str, before: &str, host: &str, out: &mut String) {
    let mut rest = tag;
    while let Some(at) = rest.find('=') {
        let (head, tail) = rest.split_at(at + 1);
        out.push_str(head);
        rest = tail;
        let name =
            head[..at].trim_end().rsplit(|sign: char| sign.is_ascii_whitespace() || sign == '"' || sign == '\'').next();
        let blank = rest.len() - rest.trim_start().len();
        out.push_str(&rest[..blank]);
        rest = &rest[blank..];
        let (value, whole) = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => match rest[1..].find(quote) {
                Some(end) => (&rest[1..=end], end + 2),
                None => break,
            },
            _ => {
                let end = rest.find(|sign: char| sign.is_ascii_whitespace() || sign == '>').unwrap_or(rest.len());
                (&rest[..end], end)
            }
        };
        let is_link = name.is_some_and(|name| LINKS.contains(&name.to_ascii_lowercase().as_str()));
        match link(value, before, host).filter(|_| is_link) {
            Some(new) => out.push_str(&rest[..whole].replacen(value, &new, 1)),
            None => out.push_str(&rest[..whole]),
        }
        rest = &rest[whole..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEFORE: &str = "/api/v1/namespaces/a/pods/b/proxy";

    #[test]
    fn links_lead_through_the_proxy_again() {
        for (given, expected) in [
            (r#"<a href="/rewriteme">x</a>"#, r#"<a href="/api/v1/namespaces/a/pods/b/proxy/rewriteme">x</a>"#),
            ("<img class='a=b' SRC=/x>", "<img class='a=b' SRC=/api/v1/namespaces/a/pods/b/proxy/x>"),
            (r#"<a href="http://10.0.0.1:80/x">"#, r#"<a href="/api/v1/namespaces/a/pods/b/proxy/x">"#),
            (r#"<a href="x"> a="/y" <b title="/z">"#, r#"<a href="x"> a="/y" <b title="/z">"#),
            (r#"<a href="http://elsewhere/x">"#, r#"<a href="http://elsewhere/x">"#),
            (r#"<!-- <a href="/x"> -->"#, r#"<!-- <a href="/x"> -->"#),
            (r#"<a href="/x"#, r#"<a href="/x"#),
            ("a < b = /c", "a < b = /c"),
        ] {
            assert_eq!(page(given, BEFORE, "10.0.0.1:80"), expected);
        }
    }

    proptest! {
        #[test]
        fn any_page_is_taken(text in "[<>a-c\"'=/ \\-!é]*(href)?[<>\"'=/ é]*") {
            page(&text, BEFORE, "10.0.0.1:80");
        }

        #[test]
        fn pages_without_links_stay(text in "[<>a-c\"'=/ \\-!é]*") {
            prop_assert_eq!(page(&text, BEFORE, "10.0.0.1:80"), text);
        }
    }
}
