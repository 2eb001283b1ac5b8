use crate::Machine;

impl Machine {
    /// The machine as label and value, for people.
    pub fn facts(&self) -> Vec<(String, String)> {
        let (cpu, memory) = (&self.cpu, &self.memory);
        let caches: Vec<String> =
            cpu.caches.iter().map(|c| format!("{} {} × {}", c.name, c.size, c.instances)).collect();
        let cores = cpu.cores.map_or_else(String::new, |n| format!("{n} cores, "));
        let mut list = vec![
            ("CPU", format!("{} ({cores}{} threads)", cpu.name, cpu.threads)),
            ("Instruction sets", cpu.extensions.join(" ")),
            ("Caches", caches.join(", ")),
            ("Memory", format!("{} ({} free)", memory.total, memory.available)),
        ];
        if let Some(limit) = memory.limit {
            list.push(("Memory limit", format!("{limit} (control group)")));
        }
        if let Some(bandwidth) = self.read_bandwidth {
            list.push(("Memory bandwidth", format!("{bandwidth}/s read, measured")));
        }
        for gpu in &self.gpus {
            let compute =
                gpu.compute.map_or_else(String::new, |(a, b)| format!(", compute {a}.{b}"));
            list.push((
                "GPU",
                format!("{} ({}{compute}, driver {})", gpu.name, gpu.memory, gpu.driver),
            ));
        }
        if let Some(note) = &self.gpu_note {
            list.push(("GPU", format!("none: {note}")));
        }
        list.push(("System", format!("{}, kernel {}", self.os, self.kernel)));
        list.into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(label, value)| (label.to_owned(), value))
            .collect()
    }
}
