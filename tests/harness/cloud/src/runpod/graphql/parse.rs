//! The part of GraphQL that clients of RunPod speak: operations, aliases, arguments, variables and
//! nested selections; no fragments, no directives.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::{Map, Number, Value};

/// A value in a document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Term {
    Variable(String),
    Leaf(Value),
    List(Vec<Term>),
    Object(Vec<(String, Term)>),
}

impl Term {
    /// With its variables put in; one that was not given is null.
    pub(crate) fn value(&self, variables: &Value) -> Value {
        match self {
            Self::Variable(name) => variables.get(name).cloned().unwrap_or_default(),
            Self::Leaf(value) => value.clone(),
            Self::List(items) => items.iter().map(|item| item.value(variables)).collect(),
            Self::Object(members) => {
                let members =
                    members.iter().map(|(name, term)| (name.clone(), term.value(variables)));
                Value::Object(members.collect::<Map<_, _>>())
            }
        }
    }
}

/// A field that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Field {
    /// Its name in the answer.
    pub(crate) alias: String,
    pub(crate) name: String,
    pub(crate) arguments: Vec<(String, Term)>,
    pub(crate) fields: Vec<Field>,
}

impl Field {
    /// The value of an argument, null where it is not there.
    pub(crate) fn argument(&self, name: &str, variables: &Value) -> Value {
        let given = self.arguments.iter().find(|(known, _)| known == name);
        given.map(|(_, term)| term.value(variables)).unwrap_or_default()
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) mutation: bool,
    pub(crate) fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Leaf(Value),
    Mark(char),
}

/// Reads a document.
pub(crate) fn parse(text: &str) -> Result<Document, String> {
    let mut parser = Parser { tokens: tokens(text)?.into_iter().peekable(), depth: 0 };
    let mut mutation = false;
    if let Some(Token::Name(kind)) = parser.tokens.peek().cloned() {
        mutation = match kind.as_str() {
            "query" => false,
            "mutation" => true,
            other => return Err(format!("Syntax Error: Unexpected Name \"{other}\".")),
        };
        parser.tokens.next();
        // The name of the operation, and the types of its variables, say nothing that is needed.
        while parser.tokens.peek().is_some_and(|token| *token != Token::Mark('{')) {
            parser.tokens.next();
        }
    }
    let fields = parser.selection()?;
    match parser.tokens.next() {
        None => Ok(Document { mutation, fields }),
        Some(token) => Err(format!("Syntax Error: Unexpected {token:?}.")),
    }
}

struct Parser<I: Iterator<Item = Token>> {
    tokens: Peekable<I>,
    depth: u32,
}

/// Deeper than any client asks; a document from outside must not fill the stack.
const DEEPEST: u32 = 32;

impl<I: Iterator<Item = Token>> Parser<I> {
    fn selection(&mut self) -> Result<Vec<Field>, String> {
        self.enter()?;
        self.expect('{')?;
        let mut fields = Vec::new();
        while !self.take('}') {
            let first = self.name()?;
            let (alias, name) =
                if self.take(':') { (first, self.name()?) } else { (first.clone(), first) };
            let arguments = if self.take('(') { self.members(')')? } else { Vec::new() };
            let nested = self.tokens.peek() == Some(&Token::Mark('{'));
            let inner = if nested { self.selection()? } else { Vec::new() };
            fields.push(Field { alias, name, arguments, fields: inner });
        }
        self.depth -= 1;
        Ok(fields)
    }

    fn members(&mut self, end: char) -> Result<Vec<(String, Term)>, String> {
        let mut members = Vec::new();
        while !self.take(end) {
            let name = self.name()?;
            self.expect(':')?;
            members.push((name, self.term()?));
        }
        Ok(members)
    }

    fn term(&mut self) -> Result<Term, String> {
        self.enter()?;
        let term = match self.tokens.next() {
            Some(Token::Mark('$')) => Term::Variable(self.name()?),
            Some(Token::Mark('{')) => Term::Object(self.members('}')?),
            Some(Token::Mark('[')) => {
                let mut items = Vec::new();
                while !self.take(']') {
                    items.push(self.term()?);
                }
                Term::List(items)
            }
            Some(Token::Leaf(value)) => Term::Leaf(value),
            Some(Token::Name(name)) => Term::Leaf(match name.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                _ => Value::String(name),
            }),
            other => return Err(unexpected(other.as_ref())),
        };
        self.depth -= 1;
        Ok(term)
    }

    fn enter(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > DEEPEST { Err("Syntax Error: too deep.".to_owned()) } else { Ok(()) }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.tokens.next() {
            Some(Token::Name(name)) => Ok(name),
            other => Err(unexpected(other.as_ref())),
        }
    }

    fn take(&mut self, mark: char) -> bool {
        self.tokens.next_if_eq(&Token::Mark(mark)).is_some()
    }

    fn expect(&mut self, mark: char) -> Result<(), String> {
        if self.take(mark) { Ok(()) } else { Err(unexpected(self.tokens.peek())) }
    }
}

fn unexpected(token: Option<&Token>) -> String {
    match token {
        None => "Syntax Error: Unexpected <EOF>.".to_owned(),
        Some(token) => format!("Syntax Error: Unexpected {token:?}."),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '#' => while rest.next_if(|next| *next != '\n').is_some() {},
            ',' => {}
            _ if letter.is_whitespace() => {}
            '{' | '}' | '(' | ')' | '[' | ']' | ':' | '$' | '!' | '=' => {
                tokens.push(Token::Mark(letter));
            }
            '"' => tokens.push(Token::Leaf(Value::String(string(&mut rest)?))),
            '-' | '0'..='9' => tokens.push(Token::Leaf(number(letter, &mut rest)?)),
            _ if letter.is_ascii_alphabetic() || letter == '_' => {
                let name =
                    run(letter, &mut rest, |next| next.is_ascii_alphanumeric() || next == '_');
                tokens.push(Token::Name(name));
            }
            _ => return Err(format!("Syntax Error: Cannot parse the character \"{letter}\".")),
        }
    }
    Ok(tokens)
}

fn run(first: char, rest: &mut Peekable<Chars<'_>>, belongs: impl Fn(char) -> bool) -> String {
    let mut text = String::from(first);
    while let Some(next) = rest.next_if(|next| belongs(*next)) {
        text.push(next);
    }
    text
}

fn number(first: char, rest: &mut Peekable<Chars<'_>>) -> Result<Value, String> {
    let text = run(first, rest, |next| next.is_ascii_digit() || "+-.eE".contains(next));
    let number: Result<Number, _> = text.parse();
    number.map(Value::Number).map_err(|_| format!("Syntax Error: Invalid number {text}."))
}

fn string(rest: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    let mut text = String::from('"');
    let mut escaped = false;
    for letter in rest.by_ref() {
        text.push(letter);
        match letter {
            '\\' if !escaped => escaped = true,
            // JSON's escapes are GraphQL's.
            '"' if !escaped => {
                let read = serde_json::from_str(&text);
                return read.map_err(|_| "Syntax Error: Invalid string.".to_owned());
            }
            _ => escaped = false,
        }
    }
    Err("Syntax Error: Unterminated string.".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn aliases_arguments_variables_and_nested_fields_are_read() {
        let text = r#"query Prices($c: Int! = 1) { a: gpuTypes(input: {id: "x \"y\"", n: [1, -2.5, $c]}) { id # why
            lowestPrice(input: {secureCloud: true, kind: SECURE}) { stockStatus } } }"#;
        let document = parse(text).unwrap();
        let [field] = document.fields.as_slice() else { panic!("{document:?}") };
        assert_eq!((field.alias.as_str(), field.name.as_str()), ("a", "gpuTypes"));
        let input = field.argument("input", &json!({ "c": 8 }));
        assert_eq!(input, json!({ "id": "x \"y\"", "n": [1, -2.5, 8] }));
        let inner = field.fields[1].argument("input", &Value::Null);
        assert_eq!(inner, json!({ "secureCloud": true, "kind": "SECURE" }));
        assert_eq!(field.fields[1].fields[0].name, "stockStatus");
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let deep = format!("{{{}", "a{".repeat(100_000));
        for text in
            ["", "{", "{a(b:)}", "{a} {b}", "{\"a\"}", "subscription{a}", "{a(b:\"c)}", &deep]
        {
            assert!(parse(text).is_err(), "{}", &text[..text.len().min(20)]);
        }
    }
}
