//! Protocol buffers as text: as much as the golden files use.

/// A message: fields in order.
#[derive(Debug, Default)]
pub struct Message(Vec<(String, Value)>);

#[derive(Debug)]
enum Value {
    Scalar(Vec<u8>),
    Message(Message),
}

/// Reads `name: value` and `name { … }`, one a line.
pub fn parse(text: &[u8]) -> Message {
    let mut open = vec![("".to_owned(), Message::default())];
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if line == b"}" {
            let (name, message) = open.pop().unwrap();
            open.last_mut().unwrap().1.0.push((name, Value::Message(message)));
        } else if let Some(name) = line.strip_suffix(b" {") {
            open.push((String::from_utf8(name.to_vec()).unwrap(), Message::default()));
        } else {
            let colon = line.iter().position(|byte| *byte == b':').unwrap();
            let name = String::from_utf8(line[..colon].to_vec()).unwrap();
            let value = Value::Scalar(line[colon + 2..].to_vec());
            open.last_mut().unwrap().1.0.push((name, value));
        }
    }
    assert_eq!(open.len(), 1);
    open.pop().unwrap().1
}

impl Message {
    pub fn messages(&self, name: &str) -> impl Iterator<Item = &Message> {
        self.0.iter().filter(move |field| field.0 == name).filter_map(|field| match &field.1 {
            Value::Message(message) => Some(message),
            Value::Scalar(_) => None,
        })
    }

    pub fn message(&self, name: &str) -> &Message {
        self.messages(name).next().unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    /// The message that is neither header nor anything else that events have in common.
    pub fn body(&self) -> &Message {
        let body = self.0.iter().find_map(|(name, value)| match value {
            Value::Message(message) if name.ends_with("_event") => Some(message),
            _ => None,
        });
        body.unwrap_or_else(|| panic!("no event in {self:?}"))
    }

    fn scalars(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |field| field.0 == name).filter_map(|field| match &field.1 {
            Value::Scalar(scalar) => Some(&scalar[..]),
            Value::Message(_) => None,
        })
    }

    pub fn numbers(&self, name: &str) -> Vec<u64> {
        let number = |scalar: &[u8]| match scalar {
            b"true" => 1,
            b"false" => 0,
            number => std::str::from_utf8(number).unwrap().parse().unwrap(),
        };
        self.scalars(name).map(number).collect()
    }

    pub fn number(&self, name: &str) -> u64 {
        let numbers = self.numbers(name);
        assert_eq!(numbers.len(), 1, "{name} in {self:?}");
        numbers[0]
    }

    /// A string, unescaped.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let scalar = self.scalars(name).next().unwrap_or_else(|| panic!("no {name}"));
        let mut rest = scalar.strip_prefix(b"\"").unwrap().strip_suffix(b"\"").unwrap().iter().copied();
        let mut bytes = Vec::new();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'\\' => match rest.next().unwrap() {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    digit @ b'0'..=b'7' => {
                        let more = [rest.next().unwrap(), rest.next().unwrap()];
                        let digits = [digit - b'0', more[0] - b'0', more[1] - b'0'];
                        digits[0] << 6 | digits[1] << 3 | digits[2]
                    }
                    other => other,
                },
                byte => byte,
            });
        }
        bytes
    }
}
