//! Lists of CPUs and nodes as the kernel and the kubelet write them: `0-3,8`.

/// The numbers of a list, ascending; none if it is no list. An empty text is an empty list.
pub fn parse(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // The kernel's own limit is 8192 CPUs.
        if last > 65_535 {
            return None;
        }
        all.extend(first..=last);
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

/// An ascending list as the kernel writes it.
pub fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let words = runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_written_as_the_kernel_writes_it() {
        assert_eq!(parse("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse("\n"), Some(vec![]));
        for bad in ["x", "1-", "0-4294967295"] {
            assert_eq!(parse(bad), None);
        }
        assert_eq!(ranges(&[1, 2, 3, 7]), "1-3,7");
        assert_eq!(ranges(&[]), "");
    }
}
