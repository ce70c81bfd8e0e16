//! The Swagger document as protobuf, the only form that kubectl takes up to 1.26 (C2.3): gnostic's
//! `openapi.v2.Document`.
//!
//! Written from the JSON document, so both say the same. Left out is what no such client reads: bodies and responses
//! of operations, and schemas in places other than definitions.

use serde_json::{Map, Value};

/// What clients ask for; the `@` is no legal character of a media type, but so they do.
const ASKED: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];
/// What they are told they get.
pub const MEDIA_TYPE: &str = ASKED[1];

/// Whether the client prefers this form: the first form that we know counts.
pub fn is_wanted(accept: &str) -> bool {
    let mut ranges = accept.split(',').map(|range| range.split(';').next().unwrap_or_default().trim());
    ranges
        .find(|range| ASKED.contains(range) || matches!(*range, "application/json" | "application/*" | "*/*"))
        .is_some_and(|range| ASKED.contains(&range))
}

/// The whole document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut whole = Message::default();
    whole.text(1, &document["swagger"]);
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]).text(2, &document["info"]["version"]);
    whole.message(2, &info);
    let mut paths = Message::default();
    for (path, item) in fields(&document["paths"]) {
        paths.named(2, path, &path_item(item));
    }
    whole.message(8, &paths);
    whole.message(9, &schemas(&document["definitions"]));
    whole.0
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// `Definitions` and `Properties`.
fn schemas(named: &Value) -> Message {
    let mut all = Message::default();
    for (name, one) in fields(named) {
        all.named(1, name, &schema(one));
    }
    all
}

fn schema(value: &Value) -> Message {
    let mut schema = Message::default();
    schema.text(1, &value["$ref"]).text(2, &value["format"]).text(4, &value["description"]);
    for name in items(&value["required"]) {
        schema.text(19, name);
    }
    match &value["additionalProperties"] {
        Value::Bool(any) => {
            let mut item = Message::default();
            item.flag(2, *any);
            schema.message(21, &item);
        }
        inner @ Value::Object(_) => {
            schema.message(21, &wrapped(self::schema(inner)));
        }
        _ => {}
    }
    if let kind @ Value::String(_) = &value["type"] {
        let mut types = Message::default();
        types.text(1, kind);
        schema.message(22, &types);
    }
    if let inner @ Value::Object(_) = &value["items"] {
        schema.message(23, &wrapped(self::schema(inner)));
    }
    if let properties @ Value::Object(_) = &value["properties"] {
        schema.message(25, &schemas(properties));
    }
    schema.extensions(31, value);
    schema
}

/// A message whose first field is this one.
fn wrapped(inner: Message) -> Message {
    let mut outer = Message::default();
    outer.message(1, &inner);
    outer
}

fn path_item(value: &Value) -> Message {
    let mut item = Message::default();
    for (method, number) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let one @ Value::Object(_) = &value[method] {
            item.message(number, &operation(one));
        }
    }
    item.parameters(9, value);
    item
}

fn operation(value: &Value) -> Message {
    let mut operation = Message::default();
    for (name, number) in [("tags", 1), ("produces", 6), ("consumes", 7)] {
        for text in items(&value[name]) {
            operation.text(number, text);
        }
    }
    operation.parameters(8, value);
    operation.extensions(13, value);
    operation
}

/// `Parameter`; bodies are left out.
fn parameter(value: &Value) -> Option<Message> {
    let (number, type_number) = match value["in"].as_str()? {
        "query" => (3, 6),
        "path" => (4, 5),
        _ => return None,
    };
    let mut schema = Message::default();
    schema.flag(1, value["required"] == true).text(2, &value["in"]).text(4, &value["name"]);
    schema.text(type_number, &value["type"]);
    let mut not_body = Message::default();
    not_body.message(number, &schema);
    let mut parameter = Message::default();
    parameter.message(2, &not_body);
    Some(parameter)
}

/// The bytes of a message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: usize, content: &[u8]) -> &mut Self {
        self.number(field << 3 | 2);
        self.number(content.len());
        self.0.extend_from_slice(content);
        self
    }

    /// A string; nothing if the value is none.
    fn text(&mut self, field: usize, value: &Value) -> &mut Self {
        match value {
            Value::String(text) => self.bytes(field, text.as_bytes()),
            _ => self,
        }
    }

    fn flag(&mut self, field: usize, value: bool) -> &mut Self {
        if value {
            self.number(field << 3);
            self.number(1);
        }
        self
    }

    fn message(&mut self, field: usize, inner: &Message) -> &mut Self {
        self.bytes(field, &inner.0)
    }

    /// An entry of a map, as gnostic writes maps.
    fn named(&mut self, field: usize, name: &str, value: &Message) {
        let mut entry = Message::default();
        entry.bytes(1, name.as_bytes()).message(2, value);
        self.message(field, &entry);
    }

    fn parameters(&mut self, field: usize, of: &Value) {
        for one in items(&of["parameters"]).filter_map(parameter) {
            self.message(field, &wrapped(one));
        }
    }

    /// What begins with `x-`, each as YAML text.
    fn extensions(&mut self, field: usize, of: &Value) {
        let none = Map::new();
        for (name, value) in of.as_object().unwrap_or(&none).iter().filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Message::default();
            // JSON values have string keys only, which YAML can always write.
            any.bytes(2, serde_yaml_ng::to_string(value).unwrap_or_default().as_bytes());
            self.named(field, name, &any);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Read back by prost with the published numbers of the fields.

    use prost::Message as _;
    use serde_json::json;

    use super::*;

    #[derive(prost::Message)]
    struct Document {
        #[prost(string, tag = "1")]
        swagger: String,
        #[prost(message, tag = "8")]
        paths: Option<Paths>,
        #[prost(message, tag = "9")]
        definitions: Option<Schemas>,
    }

    #[derive(prost::Message)]
    struct Paths {
        #[prost(message, repeated, tag = "2")]
        path: Vec<NamedPath>,
    }

    #[derive(prost::Message)]
    struct NamedPath {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, tag = "2")]
        value: Option<PathItem>,
    }

    #[derive(prost::Message)]
    struct PathItem {
        #[prost(message, tag = "8")]
        patch: Option<Operation>,
        #[prost(message, repeated, tag = "9")]
        parameters: Vec<ParametersItem>,
    }

    #[derive(prost::Message)]
    struct Operation {
        #[prost(message, repeated, tag = "8")]
        parameters: Vec<ParametersItem>,
        #[prost(message, repeated, tag = "13")]
        vendor_extension: Vec<NamedAny>,
    }

    #[derive(prost::Message)]
    struct ParametersItem {
        #[prost(message, tag = "1")]
        parameter: Option<Parameter>,
    }

    #[derive(prost::Message)]
    struct Parameter {
        #[prost(message, tag = "2")]
        non_body: Option<NonBody>,
    }

    #[derive(prost::Message)]
    struct NonBody {
        #[prost(message, tag = "3")]
        query: Option<Query>,
        #[prost(message, tag = "4")]
        path: Option<Query>,
    }

    #[derive(prost::Message)]
    struct Query {
        #[prost(bool, tag = "1")]
        required: bool,
        #[prost(string, tag = "4")]
        name: String,
    }

    #[derive(prost::Message)]
    struct Schemas {
        #[prost(message, repeated, tag = "1")]
        all: Vec<NamedSchema>,
    }

    #[derive(prost::Message)]
    struct NamedSchema {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, tag = "2")]
        value: Option<Schema>,
    }

    #[derive(prost::Message)]
    struct Schema {
        #[prost(string, tag = "1")]
        reference: String,
        #[prost(string, tag = "2")]
        format: String,
        #[prost(string, tag = "4")]
        description: String,
        #[prost(string, repeated, tag = "19")]
        required: Vec<String>,
        #[prost(message, optional, boxed, tag = "21")]
        additional_properties: Option<Box<Wrapped>>,
        #[prost(message, tag = "22")]
        kind: Option<Texts>,
        #[prost(message, optional, boxed, tag = "23")]
        items: Option<Box<Wrapped>>,
        #[prost(message, tag = "25")]
        properties: Option<Schemas>,
        #[prost(message, repeated, tag = "31")]
        vendor_extension: Vec<NamedAny>,
    }

    #[derive(prost::Message)]
    struct Wrapped {
        #[prost(message, optional, boxed, tag = "1")]
        schema: Option<Box<Schema>>,
    }

    #[derive(prost::Message)]
    struct Texts {
        #[prost(string, repeated, tag = "1")]
        value: Vec<String>,
    }

    #[derive(prost::Message)]
    struct NamedAny {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, tag = "2")]
        value: Option<AnyValue>,
    }

    #[derive(prost::Message)]
    struct AnyValue {
        #[prost(string, tag = "2")]
        yaml: String,
    }

    fn extension(all: &[NamedAny], name: &str) -> Value {
        let found = all.iter().find(|one| one.name == name).and_then(|one| one.value.as_ref());
        found.map_or(Value::Null, |any| serde_yaml_ng::from_str(&any.yaml).unwrap())
    }

    impl Schemas {
        #[track_caller]
        fn get(&self, name: &str) -> &Schema {
            self.all.iter().find(|one| one.name == name).and_then(|one| one.value.as_ref()).expect(name)
        }
    }

    fn of_json(schema: &Schema) -> Value {
        let mut json = Map::new();
        for (name, text) in
            [("$ref", &schema.reference), ("format", &schema.format), ("description", &schema.description)]
        {
            if !text.is_empty() {
                json.insert(name.to_owned(), json!(text));
            }
        }
        if !schema.required.is_empty() {
            json.insert("required".to_owned(), json!(schema.required));
        }
        if let Some(kind) = &schema.kind {
            json.insert("type".to_owned(), json!(kind.value[0]));
        }
        for (name, inner) in [("additionalProperties", &schema.additional_properties), ("items", &schema.items)] {
            if let Some(inner) = inner.as_ref().and_then(|wrapped| wrapped.schema.as_ref()) {
                json.insert(name.to_owned(), of_json(inner));
            }
        }
        if let Some(properties) = &schema.properties {
            let all = properties.all.iter().map(|one| (one.name.clone(), of_json(one.value.as_ref().unwrap())));
            json.insert("properties".to_owned(), Value::Object(all.collect()));
        }
        for one in &schema.vendor_extension {
            json.insert(one.name.clone(), extension(&schema.vendor_extension, &one.name));
        }
        json.into()
    }

    fn decoded() -> Document {
        Document::decode(super::super::v2_protobuf().plain().as_slice()).unwrap()
    }

    #[test]
    fn definitions_read_back_as_the_json_document_has_them() {
        // C2.3
        let document = decoded();
        assert_eq!(document.swagger, "2.0");
        let json: Value = serde_json::from_slice(&super::super::v2().plain()).unwrap();
        let definitions = document.definitions.unwrap();
        assert_eq!(definitions.all.len(), json["definitions"].as_object().unwrap().len());
        for one in &definitions.all {
            assert_eq!(of_json(one.value.as_ref().unwrap()), json["definitions"][&one.name], "{}", one.name);
        }
        let pod_spec = definitions.get("io.k8s.api.core.v1.PodSpec");
        let containers = pod_spec.properties.as_ref().unwrap().get("containers");
        assert_eq!(extension(&containers.vendor_extension, "x-kubernetes-patch-merge-key"), "name");
        let kinds = &definitions.get("io.k8s.api.apps.v1.Deployment").vendor_extension;
        assert_eq!(
            extension(kinds, "x-kubernetes-group-version-kind"),
            json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
        );
    }

    #[test]
    fn patches_state_that_they_can_be_tried() {
        // C2.3: what `--dry-run=server` looks for.
        let paths = decoded().paths.unwrap().path;
        let pod = paths.into_iter().find(|one| one.name == "/api/v1/namespaces/{namespace}/pods/{name}").unwrap();
        let item = pod.value.unwrap();
        let names: Vec<(String, bool)> = item
            .parameters
            .into_iter()
            .filter_map(|one| one.parameter?.non_body?.path)
            .map(|path| (path.name, path.required))
            .collect();
        assert_eq!(names, [("name".to_owned(), true), ("namespace".to_owned(), true)]);
        let patch = item.patch.unwrap();
        let kind = extension(&patch.vendor_extension, "x-kubernetes-group-version-kind");
        assert_eq!(kind, json!({"group": "", "kind": "Pod", "version": "v1"}));
        let mut queries = patch.parameters.into_iter().filter_map(|one| one.parameter?.non_body?.query);
        assert!(queries.any(|query| query.name == "dryRun" && !query.required));
    }

    #[test]
    fn clients_get_what_they_ask_for() {
        // C2.3
        assert!(is_wanted("application/com.github.proto-openapi.spec.v2@v1.0+protobuf"));
        assert!(is_wanted("application/com.github.proto-openapi.spec.v2.v1.0+protobuf, application/json"));
        assert!(!is_wanted("application/json, */*"));
        assert!(!is_wanted("application/json, application/com.github.proto-openapi.spec.v2@v1.0+protobuf"));
        assert!(!is_wanted(""));
    }
}
